"""LLaMA-2 with two ways: image rows have norms, keys and values of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from reward_services.deqa.config import Config

KeysValues = tuple[Tensor, Tensor]
"""Of one layer: (N, heads, rows, head width) each, keys rotated."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, (rows, head width) each."""


class RmsNorm(nn.Module):
    """LLaMA's: normalised in float32 and rounded to the working type before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class Multiway(nn.Module):
    """Text rows go through multiway.0, the image's contiguous rows through multiway.1."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor, image: slice) -> Tensor:
        text, picture = self.multiway
        rows = [text(x[:, : image.start]), picture(x[:, image]), text(x[:, image.stop :])]
        return torch.cat(rows, 1)


class DecoderLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = Multiway(lambda: RmsNorm(width, eps))
        self.self_attn = _Attention(width, config.num_attention_heads)
        self.post_attention_layernorm = Multiway(lambda: RmsNorm(width, eps))
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(
        self, x: Tensor, image: slice, rotation: Rotation, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        normed = self.input_layernorm(x, image)
        attended, keys_values = self.self_attn(normed, image, rotation, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, image)), keys_values


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.v_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, image: slice, rotation: Rotation, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        query = _rotated(self._by_head(self.q_proj(x)), rotation)
        key = _rotated(self._by_head(self.k_proj(x, image)), rotation)
        value = self._by_head(self.v_proj(x, image))
        if past:
            key, value = (_after(*pair) for pair in zip(past, (key, value), strict=True))
        rows, seen = query.shape[-2], key.shape[-2]
        causal = torch.ones(rows, seen, dtype=torch.bool, device=x.device).tril(seen - rows)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=causal)
        return self.o_proj(attended.transpose(1, 2).flatten(2)), (key, value)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def rotation(rows: range, width: int, theta: float, like: Tensor) -> Rotation:
    """Rotary positions of `rows` for heads of `width`, in the type and on the device of `like`."""
    half = torch.arange(0, width, 2, device=like.device).float() / width
    positions = torch.arange(rows.start, rows.stop, device=like.device).float()
    angles = torch.outer(positions, 1.0 / theta**half).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    cosines, sines = rotation
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


def _after(past: Tensor, new: Tensor) -> Tensor:
    """The rows of `past`, which every item of the batch shares, then `new`."""
    return torch.cat([past.expand(len(new), -1, -1, -1), new], 2)


def length(past: Sequence[KeysValues] | None) -> int:
    """Rows that `past` holds."""
    return past[0][0].shape[2] if past else 0
