"""Artifacts under fingerprints: made whole or not at all, shared by runs, removed when no run refers to
them.
"""
