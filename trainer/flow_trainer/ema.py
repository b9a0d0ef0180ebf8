"""Exponential moving average of the trained weights: what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EMA_STEP = "__step__"
"""Key of the step counter in a state_dict, beside the parameter names."""


class Ema:
    """ema <- d ema + (1 - d) weights, with d = min((1 + k) / (10 + k), decay), after k optimizer
    steps whenever (k + 1) % interval == 0 (flow_grpo's rule, applied once per such step)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, interval: int) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._interval = interval
        self._step = 0
        self._shadow = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self) -> None:
        """Call once after every optimizer step."""
        self._step += 1
        k = self._step
        if (k + 1) % self._interval:
            return
        decay = min((1 + k) / (10 + k), self._decay)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._shadow[name].lerp_(parameter.detach(), 1 - decay)

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
            for name, parameter in self._parameters.items():
                weights = parameter.detach().clone()
                parameter.copy_(self._shadow[name])
                self._shadow[name].copy_(weights)
