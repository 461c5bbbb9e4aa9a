"""Adapters: put on a model, read and written as PEFT does, merged."""
