"""Images to a model's device. It imports torch, so rewards import it in `load`, as `clip.model`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reward_services.clip.pixels import CLIP_MEAN, CLIP_STD


def model_pixels(images: np.ndarray, device: torch.device | str) -> Tensor:
    """A batch for a vision tower, (N, 3, H, W) float32 on `device`, float16 where it arrives so.

    images: (N, H, W, 3) uint8 crops, which travel as they are, a quarter of the bytes, and are normalised
    there with CLIP's mean and deviation (on any device number for number `pixels.clip_normalise`); or
    pixels that are normalised already, (N, 3, H, W) float32 or float16.
    """
    pixels = torch.from_numpy(images).to(device)
    if pixels.dtype != torch.uint8:
        return pixels
    mean = torch.from_numpy(CLIP_MEAN).to(device)
    deviation = torch.from_numpy(CLIP_STD).to(device)
    # in the order of the original's operations, which rounds as it does
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()
