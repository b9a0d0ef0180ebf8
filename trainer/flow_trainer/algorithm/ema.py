"""Exponential moving averages of the trained weights: what is evaluated and saved, and for
DiffusionNFT the policy that samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

EMA_STEP = "__step__"
"""Key of the step counter in a state_dict, beside the parameter names."""

CHUNK_ELEMENTS = 2**26
"""Weights that are swapped at a time: an adapter at once; of all weights, what is copied meanwhile stays
small beside them."""

Rule = Callable[[int], float]
"""Decay d after k optimizer steps; 1 leaves the average as it is."""


def ema_rule(decay: float, interval: int, repeats: int = 1) -> Rule:
    """d = min((1 + k) / (10 + k), decay) ** repeats whenever (k + 1) % interval == 0. flow_grpo's trainer
    applies its rule in every micro-batch of gradient accumulation between two optimizer steps, to the
    same weights: `repeats` is their number."""
    return lambda k: 1.0 if (k + 1) % interval else min((1 + k) / (10 + k), decay) ** repeats


def old_policy_rule(start: int, rate: float, maximum: float) -> Rule:
    """d = min(rate (k - start), maximum), 0 before `start`: the old policy first copies the current
    one and then lags more and more (DiffusionNFT)."""
    return lambda k: min(max(k - start, 0) * rate, maximum)


class Ema:
    """average <- d average + (1 - d) weights, with d = rule(optimizer steps so far)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rule: Rule) -> None:
        self._parameters = dict(parameters)
        self._rule = rule
        self._step = 0
        self._shadow = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self, steps: int = 1) -> None:
        """Call after every optimizer step, or after `steps` of them."""
        self._step += steps
        decay = self._rule(self._step)
        if decay == 1:
            return
        with torch.no_grad():
            for weights, shadows in self._chunks():
                torch._foreach_lerp_(shadows, weights, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards, whatever happens, the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(self._shadow)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._shadow, EMA_STEP: torch.tensor(self._step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises KeyError when a parameter is missing."""
        self._step = int(state[EMA_STEP])
        for name, shadow in self._shadow.items():
            shadow.copy_(state[name])

    def _swap(self) -> None:
        with torch.no_grad():
            for weights, shadows in self._chunks():
                kept = [torch.empty_like(tensor) for tensor in weights]
                torch._foreach_copy_(kept, weights)
                torch._foreach_copy_(weights, shadows)
                torch._foreach_copy_(shadows, kept)

    def _chunks(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Weights and averages, of sharded ones this rank's part: many tensors take a few kernels."""
        weights = _local(self._parameters.values())
        shadows = _local(self._shadow.values())
        start = size = 0
        for end, weight in enumerate(weights):
            if end > start and size + weight.numel() > CHUNK_ELEMENTS:
                yield weights[start:end], shadows[start:end]
                start, size = end, 0
            size += weight.numel()
        if weights:
            yield weights[start:], shadows[start:]


def _local(tensors: Iterable[Any]) -> list[Tensor]:
    detached = [tensor.detach() for tensor in tensors]
    return [t.to_local() if hasattr(t, "to_local") else t for t in detached]
