"""What the update minimises, one file an objective."""
