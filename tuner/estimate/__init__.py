"""What a run will take: memory, operations, time, disk. Standard library only."""
