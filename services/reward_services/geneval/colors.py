"""The color question without the network: which colors, which words, which pixels (geneval
@ af4902f)."""

from __future__ import annotations

import numpy as np
from PIL import Image

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
BACKGROUND = (0x99, 0x99, 0x99)
"""What the pixels around an object become."""

_TEMPLATES = (
    "a photo of a {color} {object}",
    "a photo of a {color}-colored {object}",
    "a photo of a {color} object",
)


def color_texts(class_name: str, color: str) -> list[str]:
    """The three texts whose mean feature stands for this color of this object."""
    return [template.format(color=color, object=class_name) for template in _TEMPLATES]


def object_crop(image: np.ndarray, box: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The object on grey: (h, w, 3) uint8 RGB.

    image: (H, W, 3) uint8 RGB; box: (4,) in pixels, rounded to whole ones as Pillow does; mask:
    (H, W) bool, what belongs to the object. What lies outside the image is black.
    """
    x0, y0, x1, y1 = (round(edge) for edge in box.tolist())
    crop = Image.fromarray(image).crop((x0, y0, x1, y1))
    if mask is not None:
        around = Image.fromarray(np.where(mask, np.uint8(0), np.uint8(255)))
        crop.paste(BACKGROUND, mask=around.crop((x0, y0, x1, y1)))
    return np.asarray(crop)
