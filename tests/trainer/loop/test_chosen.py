"""Updates on chosen samples, on real diffusers classes with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema, old_policy_rule
from flow_trainer.errors import ConfigError
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.descend import UpdateStats
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe
from policy_steps import CPU, PROMPTS, changed, made_up_advantages, sample

FORWARD: dict[str, dict[str, Any]] = {
    "sft": {},
    "orw": {"temperature": 2.0},
    "dpo": {"preference": 100.0},
}


def recipe_of(data: dict[str, Any], objective: str, **sampling: Any) -> Recipe:
    data = {**data, "forward": FORWARD[objective]}
    data["sampling"] = {**data["sampling"], "dynamics": "ode", **sampling}
    return changed(data, "update", objective=objective, kl="velocity", beta=0.01)


def run(
    policy: Policy, recipe: Recipe, advantages: Advantages | None = None
) -> tuple[UpdateStats, Ema]:
    old = Ema(policy.trainable(), old_policy_rule(0, 0.1, 0.5))
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2, weight_decay=0.0)
    samples, _ = sample(policy, recipe)
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    advantages = advantages or made_up_advantages(recipe)
    stats = update_chosen(
        policy, optimizer, None, old, recipe, 0, samples, conditioning, advantages
    )
    return stats, old


def flat(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.trainable().values()])


@pytest.mark.parametrize(("objective", "rows"), [("sft", 2), ("orw", 8), ("dpo", 4)])
def test_only_chosen_samples_take_a_forward(
    recipe_data: dict[str, Any], objective: str, rows: int
) -> None:
    weights = []
    for micro_batch, steps_per_forward in ((4, 1), (8, 3)):
        data = changed(recipe_data, "update", steps_per_forward=steps_per_forward).model_dump()
        recipe = recipe_of(data, objective, micro_batch=micro_batch)
        policy = load_policy(recipe.model, CPU, with_reference=True)
        start = flat(policy)
        stats, _ = run(policy, recipe)
        assert stats.updates == 2
        assert stats.count == rows * 3  # noise levels
        assert not torch.equal(flat(policy), start)
        weights.append(flat(policy))
    assert float(torch.isclose(weights[1], weights[0], atol=1e-4).float().mean()) > 0.99


@pytest.mark.parametrize("objective", FORWARD)
def test_without_scores_nothing_moves(policy: Policy, recipe_data: dict[str, Any], objective: str):
    recipe = recipe_of(recipe_data, objective)
    nothing = made_up_advantages(recipe)
    nothing.used[:] = False
    start = flat(policy)
    stats, _ = run(policy, recipe, nothing)
    assert stats.count == 0
    assert torch.equal(flat(policy), start)


def test_what_does_not_go_with_chosen_samples_is_refused(recipe_data: dict[str, Any]) -> None:
    data = {**recipe_data, "forward": {"old_beta": 0.1}}
    data["sampling"] = {**data["sampling"], "dynamics": "ode"}
    with pytest.raises(ConfigError, match="old_beta"):
        changed(data, "update", objective="sft")
    with pytest.raises(ConfigError, match=r"multiple of sampling\.group_size"):
        recipe_of(recipe_data, "dpo", micro_batch=3)
