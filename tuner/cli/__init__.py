"""The command line: argv → verb, and what the verbs do."""
