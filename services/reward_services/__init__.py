"""Reward services: one folder per reward, and the chassis that serves them."""

__version__ = "0.1.0"
