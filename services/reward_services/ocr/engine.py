"""What every OCR engine is to the reward: images in, lines of text in reading order out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

Point = tuple[float, float]

MAX_DETECTION_SIDE = 960
"""Longer images are detected at this length, in pixels (PaddleOCR 2's limit, flow_grpo's)."""

CUDA_HINT = "install onnxruntime-gpu in place of onnxruntime, or run with --device cpu"


@dataclass(frozen=True, slots=True)
class Line:
    """One recognised line."""

    text: str
    confidence: float
    """Mean probability of its characters, 0 to 1."""
    box: tuple[Point, ...]
    """Four corners (x, y) in pixels, clockwise from the text's top left."""


class Engine(Protocol):
    """Reads text. An image's result depends on nothing but the image: not on its neighbours."""

    identity: str
    """Packages with versions and a digest of the weights: what else can change a reading."""

    def read(self, images: Sequence[np.ndarray]) -> list[list[Line]]:
        """Lines of each (H, W, 3) uint8 RGB image, top to bottom, then left to right."""
        ...


def detection_scale(height: int, width: int, min_side: int) -> float:
    """The factor at which text is detected: the shorter side gets at least `min_side` pixels, the
    longer side at most MAX_DETECTION_SIDE."""
    enlarged = max(1.0, min_side / min(height, width))
    return min(enlarged, MAX_DETECTION_SIDE / max(height, width))


def identity_of(versions: Mapping[str, str], weights: Iterable[Path]) -> str:
    """Names with versions, and the first 12 hex digits of the files' joint SHA-256."""
    names = " ".join(f"{name}=={version}" for name, version in versions.items())
    contents = [path.read_bytes() for path in weights]
    if not contents:
        return names
    return f"{names} weights:{hashlib.sha256(b''.join(contents)).hexdigest()[:12]}"
