"""Files of a checkpoint: weights in every form, config.json, and what lies beside them."""
