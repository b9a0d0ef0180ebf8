"""Reward functions in the form of other trainers, one file a trainer."""
