"""Gradients of a score with respect to pixels, as they travel: float16 with a scale of their own."""

from __future__ import annotations

import numpy as np

from reward_api.errors import Reason, ServerFault
from reward_api.wire.messages import PixelGradient


def pack_gradient(gradient: np.ndarray) -> PixelGradient:
    """(H, W, C) floats, d value / d pixel with pixels in 0..1. Raises ValueError unless all of them are
    finite."""
    height, width, channels = gradient.shape
    scale = float(np.abs(gradient).max())
    if not np.isfinite(scale):
        raise ValueError("the gradient is NaN or infinite")
    # as double: the reciprocal of a tiny scale is infinite in float32
    unit = gradient / np.float64(scale or 1.0)
    data = unit.astype("<f2").tobytes()
    return PixelGradient(data=data, height=height, width=width, channels=channels, scale=scale)


def unpack_gradient(gradient: PixelGradient) -> np.ndarray:
    """(H, W, C) float32, d value / d pixel with pixels in 0..1. Raises ServerFault when the bytes do not
    fit the shape."""
    shape = gradient.height, gradient.width, gradient.channels
    if len(gradient.data) != 2 * np.prod(shape):
        raise ServerFault(
            Reason.INTERNAL,
            f"a gradient of {gradient.height} x {gradient.width} x {gradient.channels} numbers came with "
            f"{len(gradient.data)} bytes",
        )
    numbers = np.frombuffer(gradient.data, "<f2").reshape(shape)
    return numbers.astype(np.float32) * np.float32(gradient.scale)
