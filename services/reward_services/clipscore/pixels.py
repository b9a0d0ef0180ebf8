"""The image as flow_grpo's CLIP reward sees it: resized as floats, bilinear, not CLIP's own way."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from reward_services.clip.pixels import CLIP_MEAN, CLIP_SIDE, CLIP_STD, check_aspect


def clipscore_pixels(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, 224, 224) float32, normalised.

    Floats in 0..1, shorter side to 224 (antialiased bilinear, the longer one truncated), center
    crop (an odd margin rounds half to even), CLIP's mean and deviation: torchvision's Resize,
    CenterCrop and Normalize on a tensor, as flow_grpo @ 9745241 applies them.

    Raises ItemFailure (IMAGE_SHAPE) for a strip.
    """
    check_aspect(image)
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = (CLIP_SIDE * height // shorter, CLIP_SIDE * width // shorter)
    floats = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1)
    resized = interpolate(
        floats[None], size=size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (round((length - CLIP_SIDE) / 2) for length in size)
    crop = resized[:, top : top + CLIP_SIDE, left : left + CLIP_SIDE].numpy()
    return (crop - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]
