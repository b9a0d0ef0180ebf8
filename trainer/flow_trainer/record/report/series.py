"""A group's metric over the epochs: the mean of its seeds, the band between them, few enough points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flow_trainer.record.report.runs import Column

GAP = 3
"""A line breaks where so many usual distances between two points lie without one."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean, lowest and highest value over the runs; (N,) float64 each, NaN where the line breaks."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    common: float
    """The x up to which every run has come."""
    per_point: int = 1
    """Epochs that a point is the mean of."""

    @property
    def has_band(self) -> bool:
        return bool(np.nanmax(self.high - self.low, initial=0.0) > 0)


def curve(columns: Sequence[Column], most: int) -> Curve | None:
    """At most about `most` points: those of a longer run are means of neighbouring epochs, and the band
    is as wide as they vary. None when no run has the metric."""
    columns = [(epochs, values) for epochs, values in columns if len(epochs)]
    if not columns:
        return None
    epochs = np.unique(np.concatenate([found for found, _ in columns]))
    width = max(1, -(-int(epochs[-1] - epochs[0] + 1) // most)) if len(epochs) > most else 1
    parts = [_binned(found, values, width, int(epochs[0])) for found, values in columns]
    bins = np.unique(np.concatenate([number for number, *_ in parts]))
    table = np.full((4, len(parts), len(bins)), np.nan)
    for row, (number, *found) in enumerate(parts):
        table[:, row, np.searchsorted(bins, number)] = found
    x, mean = (np.nanmean(rows, 0) for rows in table[:2])
    low, high = np.nanmin(table[2], 0), np.nanmax(table[3], 0)
    common = min(float(found[-1]) for found, _ in columns)
    x, mean, low, high = _broken(x, mean, low, high)
    return Curve(x, mean, low, high, common, width)


def joined(curves: Sequence[np.ndarray]) -> Curve:
    """Of curves (2, N) of x and y whose points correspond, one by one: also x is a mean."""
    x, y = np.stack(curves, 1)
    return Curve(x.mean(0), y.mean(0), y.min(0), y.max(0), float(x.mean(0)[-1]))


def _binned(
    epochs: np.ndarray, values: np.ndarray, width: int, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the bins that hold something; in each, mean epoch, mean, least and largest value."""
    numbers, starts = np.unique((epochs - first) // width, return_index=True)
    counts = np.diff([*starts, len(values)])
    return (
        numbers,
        np.add.reduceat(epochs, starts) / counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def _broken(x: np.ndarray, *rows: np.ndarray) -> list[np.ndarray]:
    """NaN in every gap."""
    steps = np.diff(x)
    if not len(steps):
        return [x, *rows]
    gaps = np.flatnonzero(steps > GAP * np.median(steps)) + 1
    middles = (x[gaps - 1] + x[gaps]) / 2
    return [np.insert(x, gaps, middles), *(np.insert(row, gaps, np.nan) for row in rows)]
