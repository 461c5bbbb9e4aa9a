"""Saved steps: written, read whatever wrote them, resumed from."""
