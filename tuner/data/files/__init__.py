"""Files of any kind → chunks of rows: where they are, what they are, how they are cut and read."""
