"""Answers to every row of a file: rows → prompts → batches → answers, kept as they come → a file."""
