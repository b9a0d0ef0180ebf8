"""Exponential moving averages of the trained weights: what is evaluated and saved, and for
DiffusionNFT the policy that samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EMA_STEP = "__step__"
"""Key of the step counter in a state_dict, beside the parameter names."""

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
