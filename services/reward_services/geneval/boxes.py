"""Which boxes count, and how two boxes lie to each other. float32 throughout, as in geneval
@ af4902f: on the edge of a threshold the precision decides."""

from __future__ import annotations

import numpy as np

from reward_services.geneval.detections import MIN_SCORE

COUNTING_MIN_SCORE = 0.9
"""Prompts with the tag "counting" count only boxes that the detector is very sure of."""
MAX_OBJECTS = 16
"""Of a class, only so many boxes are kept, the surest."""
POSITION_THRESHOLD = 0.1
"""Share of both boxes' sides by which their centers must differ before there is a relation."""

_MIN_OFFSET = 1e-3  # pixels
_MIN_DIRECTION = 0.5  # of the distance: both axes can pass, so there can be two relations


def min_score(tag: str) -> float:
    """The score that a box must exceed to count for a prompt with this tag."""
    return COUNTING_MIN_SCORE if tag == "counting" else MIN_SCORE


def kept_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    threshold: float,
    max_objects: int = MAX_OBJECTS,
    max_overlap: float = 1.0,
) -> list[int]:
    """Indices of the boxes of one class that count, surest first.

    boxes: (n, 4) float32; scores: (n,) float32. At equal scores the later box comes first. With
    `max_overlap` below 1 a box is dropped whose overlap with a surer kept one reaches it.
    """
    surest_first = np.argsort(scores, kind="stable")[::-1]
    sure = scores[surest_first] > np.float32(threshold)
    candidates = surest_first[sure][:max_objects].tolist()
    if max_overlap >= 1:
        return candidates
    kept: list[int] = []
    for index in candidates:
        if all(overlap(boxes[index], boxes[other]) < max_overlap for other in kept):
            kept.append(index)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes whose last row and column are pixels of theirs."""
    intersection = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    union = _area(a) + _area(b) - intersection
    return float(intersection / union) if union else 0.0


def _area(box: np.ndarray) -> np.float32:
    width, height = np.maximum(box[2:] - box[:2] + 1, 0)
    return width * height


def relations(a: np.ndarray, b: np.ndarray) -> frozenset[str]:
    """How box `a` lies to box `b`, each (4,) float32: none, one or two of "left of", "right of",
    "above" and "below"."""
    offset = (a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2
    sides = np.abs(a[2:] - a[:2]) + np.abs(b[2:] - b[:2])
    revised = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sides, 0) * np.sign(offset)
    if (np.abs(revised) < _MIN_OFFSET).all():
        return frozenset()
    dx, dy = revised / np.linalg.norm(offset)
    found = {
        "left of": dx < -_MIN_DIRECTION,
        "right of": dx > _MIN_DIRECTION,
        "above": dy < -_MIN_DIRECTION,
        "below": dy > _MIN_DIRECTION,
    }
    return frozenset(name for name, holds in found.items() if holds)
