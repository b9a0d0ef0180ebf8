"""The order in which a person reads boxes of text: rows from top to bottom, a row from left to right.

PaddleOCR compares the tops of two boxes with ten pixels, whatever the letters' height, so that a
word of 66-pixel letters that stands 12 pixels lower than its neighbour is read in a line of its own.
Here the boxes' own heights decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Two boxes stand in one row when half of the lower one lies beside the taller one, unless their
# heights are too different (a vertical word beside lines) or one lies above the other.
_MIN_BESIDE = 0.5
_MIN_HEIGHT_RATIO = 0.4
_MAX_ABOVE = 0.5


@dataclass(frozen=True, slots=True)
class _Extent:
    """A box without its slant: `height` is that of its own sides."""

    index: int
    left: float
    right: float
    middle: float
    height: float

    @classmethod
    def of(cls, index: int, box: np.ndarray) -> _Extent:
        top_left, top_right, bottom_right, bottom_left = box
        sides = (bottom_left - top_left, bottom_right - top_right)
        height = float(np.mean([np.hypot(*side) for side in sides]))
        xs, ys = box[:, 0], box[:, 1]
        return cls(index, float(xs.min()), float(xs.max()), float(ys.mean()), height)

    def is_beside(self, other: _Extent) -> bool:
        lower, taller = sorted((self.height, other.height))
        shared = (lower + taller) / 2 - abs(self.middle - other.middle)
        above = min(self.right, other.right) - max(self.left, other.left)
        narrower = min(self.right - self.left, other.right - other.left)
        return (
            shared >= _MIN_BESIDE * lower
            and lower >= _MIN_HEIGHT_RATIO * taller
            and above <= _MAX_ABOVE * narrower
        )


def reading_order(boxes: np.ndarray) -> list[int]:
    """Indices of `boxes` (n, 4, 2), corners in pixels, clockwise from the text's top left."""
    extents = sorted((_Extent.of(i, box) for i, box in enumerate(boxes)), key=lambda e: e.middle)
    rows: list[list[_Extent]] = []
    for extent in extents:
        row = next((r for r in rows if any(extent.is_beside(other) for other in r)), None)
        if row is None:
            rows.append([extent])
        else:
            row.append(extent)
    rows.sort(key=lambda row: float(np.mean([extent.middle for extent in row])))
    return [e.index for row in rows for e in sorted(row, key=lambda e: e.left)]
