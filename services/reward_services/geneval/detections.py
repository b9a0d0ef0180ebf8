"""What a detector is to the reward: images in, instances with boxes and masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MIN_SCORE = 0.3
"""Nothing that the detector is less sure of counts, whatever the prompt asks."""


@dataclass(frozen=True, slots=True)
class Detections:
    """The n instances of one (H, W) image that score above MIN_SCORE, in the detector's order.

    One object can be here several times, also under several classes: there is no NMS.
    """

    labels: np.ndarray
    """(n,) int64, indices into CLASSES."""
    scores: np.ndarray
    """(n,) float32, 0 to 1."""
    boxes: np.ndarray
    """(n, 4) float32, x0 y0 x1 y1 in pixels; x1 and y1 lie one past the mask's last pixel."""
    masks: np.ndarray
    """(n, H, W) bool."""


class Detector(Protocol):
    """Finds objects. An image's detections depend on nothing but the image."""

    identity: str
    """Packages with versions and a digest of config and weights: what can change a detection."""

    def prepare(self, image: np.ndarray) -> Any:
        """A (H, W, 3) uint8 RGB image at the network's scale; the work of a CPU, on many threads."""
        ...

    def detect_prepared(self, images: Sequence[Any]) -> list[Detections]:
        """The instances of each image that `prepare` made ready; on the device thread."""
        ...
