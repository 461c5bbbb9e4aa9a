"""The config of a run: its schema, and the way from what a person typed to one checked, frozen tree."""
