"""CLIP's image preprocessing: shorter side to 224 by bicubic, center crop, normalise.

Split where the chassis wants it: `clip_crop` is work of one image (Scorer.prepare, in the thread
pool), `clip_normalise` makes the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from reward_api.errors import ItemFailure, Reason

CLIP_SIDE = 224
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

MAX_ASPECT = 64

Crop = Literal["floor", "round"]


def check_aspect(image: np.ndarray) -> None:
    """What is resized before the crop grows with the aspect: 8192 x 1 pixels would take gigabytes.

    Raises ItemFailure (IMAGE_SHAPE) for a strip.
    """
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ItemFailure(
            Reason.IMAGE_SHAPE,
            f"{width} x {height} pixels: the longer side may be {MAX_ASPECT} times the shorter",
        )


def clip_crop(image: np.ndarray, side: int = CLIP_SIDE, crop: Crop = "floor") -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (side, side, 3) uint8. For callers' images: `check_aspect` first.

    crop: where an odd margin goes: "floor" as transformers' CLIPImageProcessor, "round" (half to
    even) as torchvision's CenterCrop, which open_clip and OpenAI's package use.
    """
    (height, width), (top, left) = crop_box(image.shape[0], image.shape[1], crop, side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def crop_box(
    height: int, width: int, crop: Crop, side: int = CLIP_SIDE
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (height, width) to which an image is resized, and (top, left) of the crop in it."""
    shorter = min(height, width)
    # The longer side is truncated, as both originals do.
    scaled = side * height // shorter, side * width // shorter
    return scaled, (_margin(scaled[0] - side, crop), _margin(scaled[1] - side, crop))


def _margin(spare: int, crop: Crop) -> int:
    return spare // 2 if crop == "floor" else round(spare / 2)


def in_half(pixels: np.ndarray, dtype: str) -> np.ndarray:
    """Normalised pixels as they go to towers of type `dtype`: half the bytes to stack and to send where
    those round them to float16 anyway. numpy has no bfloat16."""
    return pixels.astype(np.float16) if dtype == "float16" else pixels


def clip_normalise(crops: Sequence[np.ndarray]) -> np.ndarray:
    """N crops (side, side, 3) uint8 -> (N, 3, side, side) float32 with CLIP's mean and deviation."""
    pixels = np.stack(crops).astype(np.float32) / np.float32(255)
    pixels = (pixels - CLIP_MEAN) / CLIP_STD
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
