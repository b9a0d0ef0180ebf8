"""2x2 patches of a latent as tokens: what the transformers of FLUX.1, FLUX.2 and Qwen-Image take."""

from __future__ import annotations

from torch import Tensor


def pack(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h/2 w/2, 4 C)."""
    b, c, h, w = x.shape
    patches = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, h/2 w/2, 4 C) to (B, C, h, w)."""
    b, _, c = tokens.shape
    patches = tokens.view(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, height, width)
