"""Gradients of a score with respect to the pixels of an image, through CLIP's preprocessing.

The score is that of the real preprocessing, which rounds a resized image to uint8; rounding counts as
the identity. What is left of a preprocessing is affine, so its gradient does not depend on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reward_api.wire.gradients import pack_gradient
from reward_api.wire.messages import ItemScore, PixelGradient
from reward_services.chassis.scorer import Sample
from reward_services.clip.pixels import CLIP_SIDE, CLIP_STD, Crop, crop_box

_FLOAT16_SCALE = 2.0**12
"""A cosine changes by 1e-5 with a pixel of its crop: too little for float16 towers."""


def input_gradient(
    score: Callable[[Tensor], Tensor], pixels: np.ndarray, device: torch.device, dtype: torch.dtype
) -> tuple[list[float], Tensor]:
    """Values (N) of normalised pixels (N, 3, S, S) and their gradients, float32 of that shape on
    the CPU. `score` takes the pixels in `dtype`, and its value i depends on picture i only."""
    inputs = torch.from_numpy(pixels).to(device).float().requires_grad_()
    factor = _FLOAT16_SCALE if dtype is torch.float16 else 1.0
    with torch.enable_grad():
        values = score(inputs.to(dtype))
        (gradient,) = torch.autograd.grad(factor * values.sum(), inputs)
    return values.tolist(), (gradient / factor).cpu()


def image_gradient(
    gradient: Tensor, shape: Sequence[int], affine: Callable[[Tensor], Tensor]
) -> PixelGradient:
    """From the network's input (3, S, S) back to the image of `shape` (H, W, 3), with `affine` the
    preprocessing of floats in 0..1: (1, 3, H, W) to (1, 3, S, S)."""
    height, width, _ = shape
    image = torch.zeros(1, 3, height, width, requires_grad=True)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(affine(image), image, gradient[None])
    return pack_gradient(found[0].permute(1, 2, 0).numpy())


def with_gradients(
    scores: Sequence[ItemScore],
    factor: float,
    gradients: Tensor,
    batch: Sequence[Sample],
    affine: Callable[[Tensor], Tensor],
) -> list[ItemScore]:
    """The scores of a batch with d value / d pixel, `gradients` (N, 3, S, S) being those of the number
    that a value is `factor` times."""
    return [
        score.model_copy(
            update={"gradient": image_gradient(factor * found, sample.image.shape, affine)}
        )
        for score, found, sample in zip(scores, gradients, batch, strict=True)
    ]


def resized_crop(image: Tensor, *, mode: str = "bicubic", crop: Crop = "floor") -> Tensor:
    """`clip_crop` and CLIP's deviation on floats (1, 3, H, W): what an affine map needs of them."""
    (height, width), (top, left) = crop_box(image.shape[2], image.shape[3], crop)
    resized = interpolate(
        image, size=(height, width), mode=mode, antialias=True, align_corners=False
    )
    cut = resized[:, :, top : top + CLIP_SIDE, left : left + CLIP_SIDE]
    return cut / torch.from_numpy(CLIP_STD)[:, None, None]
