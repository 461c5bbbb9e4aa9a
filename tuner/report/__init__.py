"""What people read: the report, the comparison, tokens. Standard library only."""
