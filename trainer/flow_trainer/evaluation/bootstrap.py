"""Means with percentile-bootstrap intervals. Prompts are resampled, not images: the images of a
prompt are alike, and would make an interval too narrow if they counted as independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and where it would lie in 95 of 100 draws of as many prompts. The bounds of a mean over
    equal values are that value: no resample of them differs."""

    mean: float
    low: float
    high: float


def interval(groups: Sequence[np.ndarray], seed: int = 0) -> Interval | None:
    """The mean of the groups' means, each over its images; None when a group has no score at all.

    `groups` hold one array (P, K) each: K scores of P prompts, NaN where there is none. Groups are
    resampled apart from each other, so every resample has as many prompts of each as the data.
    """
    rng = np.random.default_rng(seed)
    means, draws = [], np.zeros(RESAMPLES)
    for values in groups:
        counts = np.isfinite(values).sum(1)
        kept = counts > 0
        if not kept.any():
            return None
        sums, counts = np.nansum(values[kept], 1), counts[kept]
        means.append(sums.sum() / counts.sum())
        draws += _resampled(sums, counts, rng)
    draws /= len(groups)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(means)), float(low), float(high))


def _resampled(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(RESAMPLES,) means over as many prompts drawn with replacement."""
    size = len(sums)
    parts = []
    for start in range(0, RESAMPLES, _CHUNK):
        chosen = rng.integers(size, size=(min(_CHUNK, RESAMPLES - start), size))
        parts.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    return np.concatenate(parts)
