"""mPLUG-Owl2's image tower: a ViT-L/14 at 448 pixels whose class token stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from reward_services.deqa.config import VisionConfig


class VisionTower(nn.Module):
    """Pixels (N, 3, S, S) -> (N, 1 + patches, width), after the last norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + config.grid**2, width))
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.pre_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        class_token = self.cls_token.expand(len(patches), -1, -1)
        return self.pre_layernorm(torch.cat([class_token, patches], 1) + self.position_embedding)


class _Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.input_layernorm = nn.LayerNorm(width, eps)
        self.self_attn = _Attention(width, config.num_attention_heads)
        self.post_attention_layernorm = nn.LayerNorm(width, eps)
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # The 3 * width outputs are grouped by head: q, k, v of head 0, then of head 1...
        by_head = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)
        query, key, value = by_head.unbind(-2)
        attended = scaled_dot_product_attention(query, key, value)
        return self.dense(attended.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))
