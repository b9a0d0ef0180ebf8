"""What a run leaves: checkpoints, logs, the report."""
