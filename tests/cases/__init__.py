"""Situations that people have reported of tools of this kind, each with the right result."""
