"""The attention seam and its backends."""
