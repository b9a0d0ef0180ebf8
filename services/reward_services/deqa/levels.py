"""From five logits to a score."""

from __future__ import annotations

import numpy as np

WEIGHTS = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
"""Of excellent, good, fair, poor, bad."""


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(..., 5) -> (..., 5), in float64: softmax over the five levels alone."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def level(probabilities: np.ndarray) -> np.ndarray:
    """The expected level, 1 (bad) to 5 (excellent)."""
    return probabilities @ WEIGHTS
