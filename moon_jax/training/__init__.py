"""State, step, optimizer, checkpoints and logs."""
