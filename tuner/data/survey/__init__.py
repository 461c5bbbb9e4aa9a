"""A look over all files of a source before its rows are read, for what one row can't tell."""
