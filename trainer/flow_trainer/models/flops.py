"""Floating-point operations of a transformer, counted by running it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.families.family import Family
from flow_trainer.recipe import Model


def forward_flops(
    transformer_class: Any,
    transformer_config: Any,
    family: Family,
    config: Model,
    latent_shape: tuple[int, int, int],
    text_tokens: int,
) -> float:
    """FLOPs of one forward of one image without classifier-free guidance: matrix products and
    attention alone, 2 per multiply-add, as MFU counts them. Takes no memory, and a few seconds for the
    largest models."""
    with torch.device("meta"), torch.no_grad():
        transformer = transformer_class.from_config(transformer_config).eval()
        pooled = getattr(transformer.config, "pooled_projection_dim", None)
        text = Conditioning(
            torch.empty(1, text_tokens, family.text_width(transformer.config)),
            None if pooled is None else torch.empty(1, pooled),
        )
        x, sigma = torch.empty(1, *latent_shape), torch.empty(1)
        with FlopCounterMode(display=False) as counter:
            family.velocity(transformer, config, x, sigma, text)
    return float(counter.get_total_flops())


class FlopsByText:
    """FLOPs of a forward by number of text tokens, filled up to a multiple of `multiple`. `count` is
    called for the first three numbers: the operations are a polynomial of degree 2 in them, since
    attention is."""

    def __init__(self, count: Callable[[int], float], multiple: int = 1) -> None:
        self._count = count
        self._multiple = multiple
        self._known: dict[int, float] = {}

    def __call__(self, tokens: int) -> float:
        tokens += -tokens % self._multiple
        if tokens not in self._known and len(self._known) < 3:
            self._known[tokens] = self._count(tokens)
        if tokens in self._known:
            return self._known[tokens]
        total = 0.0
        for at, flops in self._known.items():
            for other in self._known:
                if other != at:
                    flops *= (tokens - other) / (at - other)
            total += flops
        return total
