"""mPLUG-Owl2's visual abstractor: 64 learned queries read the image tower's states."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from reward_services.deqa.config import AbstractorConfig


class VisualAbstractor(nn.Module):
    """(N, 1 + grid^2, width) -> (N, queries + 1, language width): the last row is a learned end."""

    def __init__(self, config: AbstractorConfig, grid: int, language_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.query_embeds = nn.Parameter(torch.empty(1, config.num_learnable_queries, width))
        self.vit_eos = nn.Parameter(torch.empty(1, 1, language_width))
        self.encoder = _Encoder(config, grid)
        self.visual_fc = nn.Linear(width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        count = len(features)
        x = self.encoder(self.query_embeds.expand(count, -1, -1), features)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(count, -1, -1)], 1)


class _Encoder(nn.Module):
    def __init__(self, config: AbstractorConfig, grid: int) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(_Layer(config, grid) for _ in layers)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, features)
        return x


class _Layer(nn.Module):
    def __init__(self, config: AbstractorConfig, grid: int) -> None:
        super().__init__()
        self.crossattention = _CrossAttention(config, grid)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.crossattention(x, features)


class _CrossAttention(nn.Module):
    def __init__(self, config: AbstractorConfig, grid: int) -> None:
        super().__init__()
        width = config.hidden_size
        # These three norms keep torch's eps of 1e-5; the configured one is ffn_ln's alone.
        self.norm1 = nn.LayerNorm(width)
        self.normk = nn.LayerNorm(width)
        self.attention = _Attention(config, grid)
        self.output = _Output(config)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = self.norm1(x)  # the residual starts from the normed queries
        context = torch.cat([x, self.normk(features)], 1)
        return self.output(x, self.attention(x, context))


class _Attention(nn.Module):
    """Positions are added to queries and keys, not to values."""

    def __init__(self, config: AbstractorConfig, grid: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.q_pos_embed: Tensor
        self.k_pos_embed: Tensor
        self.register_buffer("q_pos_embed", torch.empty(config.num_learnable_queries, width))
        self.register_buffer("k_pos_embed", torch.empty(1 + grid**2, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        query = self._by_head(self.query(x + self.q_pos_embed))
        key = self._by_head(self.key(context + positions))
        value = self._by_head(self.value(context))
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Output(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out_proj(attended)
        return x + self.mlp(self.norm2(x))


class _Mlp(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, inner)
        self.w3 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, config.layer_norm_eps)
        self.w2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(silu(self.w1(x)) * self.w3(x)))


def position_tables(config: AbstractorConfig, grid: int) -> dict[str, Tensor]:
    """The float32 buffers of every layer, for a checkpoint that lacks them.

    A query's row encodes its number; a patch's row its column, then its row; the class token's is 0.
    """
    width = config.hidden_size
    along = _waves(grid, width // 2)
    columns, rows = np.tile(along, (grid, 1)), np.repeat(along, grid, axis=0)
    patches = np.concatenate([columns, rows], axis=1)
    return {
        "q_pos_embed": torch.from_numpy(_waves(config.num_learnable_queries, width)),
        "k_pos_embed": torch.from_numpy(np.pad(patches, ((1, 0), (0, 0)))),
    }


def _waves(count: int, width: int) -> np.ndarray:
    """(count, width): sines of falling frequency, then their cosines.

    NumPy's float32 throughout, as the original: the last digit shows in the abstractor's output.
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.float32(10000) ** exponents
    angles = np.outer(np.arange(count, dtype=np.float32), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
