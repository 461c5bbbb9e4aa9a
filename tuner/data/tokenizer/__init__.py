"""Tokenizers: read in any vendor's form, with new tokens, and written beside the weights."""
