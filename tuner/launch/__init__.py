"""Child processes: one, or the ranks of a run on one machine or several, and the channel to them."""
