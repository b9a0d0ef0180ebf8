"""Dynamic loss scaling: what keeps the gradients of a float16 network from becoming 0.

The loss is a mean over a latent's elements and over all (sample, step) pairs of an update, so at
512x512 its gradient at the network's output is about 1e-9 per element; the smallest number of float16
is 6e-8. The loss is therefore multiplied by a scale S before the backward and the float32 gradients of
the parameters are divided by it after (Micikevicius et al., arXiv 1710.03740). An overflow shows as a
gradient that is not finite: the update is skipped and S halved. bfloat16 and float32 have the range
and need no scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe

GROWTH_INTERVAL = 2000
"""Updates without an overflow after which S is doubled."""
ELEMENT_GRADIENT = 2.0**-7
"""What the start makes of the weight 1 / (elements x pairs) that one element of the network's output
has in the loss. It gives 2^21 for 512x512 and 576 x 9 pairs, which is what flow_grpo's own start of
65,536 comes to: there each of 32 processes divides by its 162 pairs alone."""


class LossScale:
    """S = `value`, a power of two; 1 for ever unless it is `dynamic`."""

    def __init__(self, value: float = 1.0, *, dynamic: bool = False) -> None:
        self.value = value
        self.dynamic = dynamic
        self.skipped = 0
        """Updates of the run that overflowed and were not taken."""
        self._good = 0

    def grow(self) -> None:
        """Call after an update whose gradients were finite and not all 0."""
        self._good += 1
        if self.dynamic and self._good == GROWTH_INTERVAL:
            self.value *= 2
            self._good = 0

    def halve(self) -> bool:
        """Call when a gradient is not finite; False when that is not the scale's doing."""
        if self.value <= 1:
            return False
        self.value /= 2
        self.skipped += 1
        self._good = 0
        return True

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """An empty state changes nothing; one from another model.dtype, the number of skips alone."""
        self.skipped = int(state.get("skipped", 0))
        if self.dynamic and state.get("value", 1.0) > 1:
            self.value, self._good = float(state["value"]), int(state["good"])


def make_loss_scale(policy: Policy, recipe: Recipe) -> LossScale:
    """For the type in which the policy computes."""
    if policy.dtype != torch.float16:
        return LossScale()
    start = math.prod(policy.latent_shape) * loss_pairs(recipe) * ELEMENT_GRADIENT
    return LossScale(2.0 ** max(math.floor(math.log2(start)), 0), dynamic=True)


def loss_pairs(recipe: Recipe) -> int:
    """(sample, step) pairs of an update, over which its loss is a mean."""
    if recipe.update.trains_on == "gradients":
        return recipe.share  # all steps of a sample together
    if recipe.data is not None and recipe.update.trains_on == "data":
        return recipe.data.batch * recipe.data.members * recipe.data.levels
    steps = len(recipe.window(0)) or recipe.sampling.num_steps - 1
    return recipe.share * min(recipe.update.trained_steps or steps, steps)
