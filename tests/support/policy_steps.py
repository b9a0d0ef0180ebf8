"""A rollout and an update of a minuscule policy, for tests of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flow_trainer.algorithm.advantages import Advantages, group_advantages
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt

PROMPTS = [Prompt("red"), Prompt("blue")]
CPU = torch.device("cpu")


def changed(data: dict[str, Any], section: str, **values: Any) -> Recipe:
    return parse_recipe({**data, section: {**data.get(section, {}), **values}})


def sample(policy: Policy, recipe: Recipe) -> tuple[Trajectories, torch.Tensor]:
    images: list[torch.Tensor] = []
    samples = rollout(policy, recipe, 0, PROMPTS, [3, 1], lambda rows, batch: images.append(batch))
    return samples, torch.cat(images)


def made_up_advantages(recipe: Recipe) -> Advantages:
    rewards = np.random.default_rng(0).random((2, recipe.sampling.group_size))
    return group_advantages(
        rewards, np.ones_like(rewards, bool), std="prompt", min_group=2, clip=5.0
    )


def update(policy: Policy, recipe: Recipe, samples: Trajectories, epoch: int = 0):
    optimizer = torch.optim.AdamW(policy.trainable().values())
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    v_ref = reference_velocities(policy, recipe, epoch, samples, conditioning)
    advantages = made_up_advantages(recipe)
    return update_policy(
        policy, optimizer, None, recipe, epoch, samples, conditioning, advantages, v_ref
    )
