"""Training: batches, loss, schedule, engine, and the loop over them."""
