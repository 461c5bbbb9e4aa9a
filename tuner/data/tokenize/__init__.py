"""A data set → documents → packs, in worker processes, with an account of every row."""
