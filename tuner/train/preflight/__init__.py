"""Before step 0: numerics and memory are proved on the user's own rows."""
