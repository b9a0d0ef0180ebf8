"""Evaluation suites: the paper's tables, from prompts to intervals."""
