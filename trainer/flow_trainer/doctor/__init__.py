"""What can be said before a run: whether it would work, what it costs."""
