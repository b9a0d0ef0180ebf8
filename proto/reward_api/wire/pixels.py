"""Arrays and tensors of any common form to uint8 pixels, as a reward sees them.

- Float pixels are in [0, 1]; they become uint8 by round(255 x), half to even, clamped, computed in
  float32 or wider. A tensor is rounded on its own device and then copied to the host once.
- uint8 pixels go as they are, without a copy when they are contiguous and channels-last.
- A float picture with a NaN or an infinity, or on another scale than [0, 1] (below -0.5 or above
  2, as in [-1, 1] or [0, 255]), is that item's failure; its neighbours are sent.

torch is never imported: a tensor is whatever has a tensor's methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, ItemFailure, Reason

_SCALE_MIN, _SCALE_MAX = -0.5, 2.0


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("detach", "cpu", "numpy", "is_floating_point"))


def to_uint8(batch: Any) -> tuple[np.ndarray, dict[int, ItemFailure]]:
    """uint8 [N, H, W, C], C-contiguous, from [N, C, H, W] or [N, H, W, C] of floats or uint8."""
    first = _is_channels_first(batch)
    if 0 in batch.shape[1:]:
        raise bad_batch(f"empty images of shape {tuple(batch.shape[1:])}")
    if _is_tensor(batch):
        batch = batch.detach()
        pixels, failures = _round_tensor(batch)
        pixels = (pixels.permute(0, 2, 3, 1) if first else pixels).contiguous().cpu().numpy()
        return pixels, failures
    pixels, failures = _round_array(batch)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if first else pixels), failures


def _is_channels_first(batch: Any) -> bool:
    first, last = batch.shape[1] in (1, 3), batch.shape[3] in (1, 3)
    if not (first or last):
        raise bad_batch(
            f"images of shape {tuple(batch.shape[1:])}; expected 1 or 3 channels, first or last"
        )
    return first and (not last or _is_tensor(batch))


def _round_tensor(batch: Any) -> tuple[Any, dict[int, ItemFailure]]:
    if not batch.is_floating_point():
        _check_uint8(str(batch.dtype))
        return batch, {}
    if batch.element_size() < 4:  # float16 and bfloat16 cannot hold 255 x exactly
        batch = batch.float()
    if not len(batch):
        return batch.byte(), {}
    low, high = batch.flatten(1).aminmax(dim=1)
    failures = _range_failures(low.cpu().numpy(), high.cpu().numpy())
    if failures:
        batch = batch.nan_to_num(0.0, 0.0, 0.0)
    return (batch * 255).round_().clamp_(0, 255).byte(), failures


def _round_array(batch: np.ndarray) -> tuple[np.ndarray, dict[int, ItemFailure]]:
    if not np.issubdtype(batch.dtype, np.floating):
        _check_uint8(str(batch.dtype))
        return batch, {}
    if batch.dtype.itemsize < 4:
        batch = batch.astype(np.float32)
    axes = (1, 2, 3)
    failures = _range_failures(batch.min(axis=axes), batch.max(axis=axes))
    if failures:
        batch = np.nan_to_num(batch, nan=0.0, posinf=0.0, neginf=0.0)
    scaled = batch * 255
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8), failures


def _range_failures(low: np.ndarray, high: np.ndarray) -> dict[int, ItemFailure]:
    """Failures by index from each picture's extremes; a NaN anywhere makes its extremes NaN."""
    finite = np.isfinite(low) & np.isfinite(high)
    failures = {
        int(i): ItemFailure(Reason.IMAGE_NON_FINITE, "the image holds NaN or infinite pixels")
        for i in np.flatnonzero(~finite)
    }
    scaled = finite & ((low < _SCALE_MIN) | (high > _SCALE_MAX))
    for i in np.flatnonzero(scaled):
        failures[int(i)] = ItemFailure(
            Reason.INVALID_REQUEST,
            f"float pixels span [{low[i]:.3g}, {high[i]:.3g}]; they must be in [0, 1] "
            "(rescale them, or send uint8)",
        )
    return failures


def _check_uint8(dtype: str) -> None:
    if dtype.removeprefix("torch.") != "uint8":
        raise bad_batch(f"pixels of type {dtype}; expected uint8, or floats in [0, 1]")


def bad_batch(got: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.IMAGE_SHAPE,
        f"got {got}. Give a batch: a 4-D tensor or array (NCHW or NHWC), or a list of images",
    )
