"""The image as HPSv2's package sees it: longest side to 224, padded to a square, nothing cut off."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from reward_services.clip.pixels import CLIP_MEAN, CLIP_SIDE, CLIP_STD


def hpsv2_pixels(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, 224, 224) float32, normalised (HPSv2 @ 866735e).

    Floats in 0..1, longest side to 224 (antialiased bicubic, not clamped: edges may leave 0..1),
    centered on black, and only then CLIP's mean and deviation. The package leaves an image whose
    longest side is 224 unpadded, which its model cannot take; here it is padded like any other.
    """
    floats = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
    square = fitted(floats, deviation=False)[0].numpy()
    return (square - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]


def fitted(image: Tensor, *, deviation: bool = True) -> Tensor:
    """(1, 3, H, W) floats -> (1, 3, 224, 224), resized and padded; over CLIP's deviation."""
    height, width = image.shape[2:]
    if max(height, width) != CLIP_SIDE:
        scale = CLIP_SIDE / max(height, width)
        height, width = max(round(height * scale), 1), max(round(width * scale), 1)
        image = interpolate(
            image, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
    spare_x, spare_y = CLIP_SIDE - width, CLIP_SIDE - height
    left, top = spare_x // 2, spare_y // 2
    square = pad(image, (left, spare_x - left, top, spare_y - top))
    return square / torch.from_numpy(CLIP_STD)[:, None, None] if deviation else square
