"""An image's embedding in the details of its score: what rewards that are built on CLIP answer when details
are asked for, and what a caller makes of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

KEY = "embedding"
"""Of `details`."""


def pack_embedding(vector: np.ndarray) -> str:
    """(D,) floats as base64 of float16, little-endian: 2.7 kB for 1,024."""
    return base64.b64encode(np.asarray(vector, "<f2").tobytes()).decode("ascii")


def unpack_embedding(details: Mapping[str, Any] | None) -> np.ndarray | None:
    """(D,) float32 of unit length from an item's details; None where they hold none that can be read."""
    try:
        data = base64.b64decode((details or {})[KEY], validate=True)
        vector = np.frombuffer(data, "<f2").astype(np.float32)
    except (KeyError, TypeError, ValueError):
        return None
    length = float(np.linalg.norm(vector))
    return vector / length if np.isfinite(length) and length > 0 else None
