"""Doctor: the type in which the model computes keeps the gradient and the log-ratio."""

from __future__ import annotations

import torch

from flow_trainer.doctor.checks import Check
from flow_trainer.loop.precision import measure_precision
from flow_trainer.loop.updates.loss_scale import make_loss_scale
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt


def check_precision(policy: Policy, recipe: Recipe, prompt: Prompt) -> Check:
    """One micro-batch's gradient and log-ratios in model.dtype against float32."""
    if policy.dtype == torch.float32:
        return Check("precision", True, f"computes in float32 on {policy.device}")
    if recipe.update.trains_on == "data":
        return Check("precision", True, "not measured: update.objective = data draws no samples")
    try:
        found = measure_precision(policy, recipe, prompt, make_loss_scale(policy, recipe))
    except torch.OutOfMemoryError:
        message = "not measured: the model in float32 does not fit beside the rest"
        return Check("precision", True, message)
    return Check(
        "precision", found.problem is None, found.explain(), warns=found.concern is not None
    )
