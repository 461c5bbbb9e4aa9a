"""Child processes: one or many that train together, on this machine or several, and the channel to them."""
