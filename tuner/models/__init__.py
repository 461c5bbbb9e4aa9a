"""Checkpoints: fetched, loaded, quantised, adapted, merged, exported, talked with."""
