"""What this machine has: GPUs, their driver, the CPU; and which libraries may be imported."""
