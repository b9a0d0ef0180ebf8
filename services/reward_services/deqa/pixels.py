"""What DeQA sees of an image: the whole of it, on a square."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

BACKGROUND = (122, 116, 104)
"""CLIP's mean, in whole steps of 1/255."""
FLOW_GRPO_QUALITY = 75
"""Of the JPEG copies that flow_grpo sends to its server (Pillow's default)."""


def padded(image: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 RGB in the middle of a square; an odd pixel goes right or below."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return Image.fromarray(image)
    square = Image.new("RGB", (side, side), BACKGROUND)
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    return square


def seen(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (side, side, 3) uint8: padded, resized by bicubic."""
    return np.asarray(padded(image).resize((side, side), Image.Resampling.BICUBIC))


def jpeg_copy(image: np.ndarray) -> np.ndarray:
    """The image after JPEG compression as flow_grpo's client does it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=FLOW_GRPO_QUALITY)
    return np.asarray(Image.open(file))
