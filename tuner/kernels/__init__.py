"""Attention within documents and its backends, and the classes of models that transformers has none for."""
