"""Distillation: teachers are adapters, one per source of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.errors import ConfigError
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.updates.distill import update_distill
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("red", source="a"), Prompt("blue", source="b")]


@pytest.fixture
def lora_data(recipe_data: dict[str, Any]) -> dict[str, Any]:
    model = {**recipe_data["model"], "tuning": "lora", "lora_rank": 2, "lora_alpha": 4}
    return {**recipe_data, "model": model}


@pytest.fixture
def teachers(lora_data: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """Adapters that move the model, each in its own direction."""
    folders = {}
    for seed, name in enumerate("ab"):
        policy = load_policy(parse_recipe(lora_data).model, CPU, with_reference=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        policy.save(tmp_path / name)
        folders[name] = str(tmp_path / name)
    return folders


def opd(data: dict[str, Any], teachers: dict[str, str], prompts: str, **sampling: Any) -> Recipe:
    return parse_recipe(
        {
            **data,
            "prompts": {
                "sources": {
                    name: {"train": prompts, "rewards": ["bright"], "teacher": folder}
                    for name, folder in teachers.items()
                }
            },
            "sampling": {**data["sampling"], **sampling},
            "update": {"objective": "opd", "updates_per_epoch": 1, "learning_rate": 2e-2},
        }
    )


def velocities(policy: Policy) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor([0.9, 0.5]), policy.encode(["red", "blue"]))


def test_a_teacher_is_its_adapter_and_leaves_the_student_alone(
    lora_data: dict[str, Any], teachers: dict[str, str], prompts_file: Path
) -> None:
    recipe = opd(lora_data, teachers, str(prompts_file))
    policy = load_policy(recipe.model, CPU, with_reference=False, teachers=recipe.teachers)
    before = velocities(policy)
    trainable = policy.trainable()
    assert not any("teacher" in name for name in trainable)
    for name, folder in teachers.items():
        alone = load_policy(
            parse_recipe({**lora_data, "model": {**lora_data["model"], "adapter": folder}}).model,
            CPU,
            with_reference=False,
        )
        with policy.teacher(name):
            found = velocities(policy)
        torch.testing.assert_close(found, velocities(alone), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(velocities(policy), before)
    assert all(p.requires_grad for p in trainable.values())


@pytest.mark.parametrize("dynamics", ["flow_sde", "ode"])
def test_the_student_comes_nearer_to_both_teachers(
    lora_data: dict[str, Any], teachers: dict[str, str], prompts_file: Path, dynamics: str
) -> None:
    recipe = opd(lora_data, teachers, str(prompts_file), dynamics=dynamics, micro_batch=8)
    torch.manual_seed(0)
    policy = load_policy(recipe.model, CPU, with_reference=False, teachers=recipe.teachers)
    optimizer = torch.optim.AdamW(policy.trainable().values())
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    losses = []
    for epoch in range(12):
        samples = rollout(policy, recipe, epoch, PROMPTS, [0, 1], lambda rows, images: None)
        assert samples.latents.shape[1] == 4
        stats = update_distill(
            policy, optimizer, None, recipe, epoch, samples, conditioning, ["a", "b"]
        )
        losses.append(stats.means()["loss"])
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("prompts", {"sources": {}, "train": "p.txt"}, r"needs prompts\.teacher"),
        ("model", {"tuning": "full"}, r"use model\.tuning = lora"),
        ("update", {"objective": "clip"}, r"a teacher is for update\.objective = opd"),
        ("sampling", {"dynamics": "ode2"}, r"use sampling\.dynamics = ode"),
        ("update", {"beta": 0.1, "kl": "velocity"}, "leave them out"),
        ("parallel", {"sharding": "full"}, "use none"),
    ],
)
def test_what_distillation_cannot_do_is_refused(
    lora_data: dict[str, Any], section: str, values: dict[str, Any], message: str
) -> None:
    base = opd(lora_data, {"a": "somewhere"}, "p.txt").model_dump()
    with pytest.raises(ConfigError, match=message):
        parse_recipe({**base, section: {**base[section], **values}})


def test_an_unreadable_teacher_is_named(
    lora_data: dict[str, Any], prompts_file: Path, tmp_path: Path
) -> None:
    recipe = opd(lora_data, {"a": str(tmp_path)}, str(prompts_file))
    with pytest.raises(ConfigError, match=r"the teacher = .* holds neither"):
        load_policy(recipe.model, CPU, with_reference=False, teachers=recipe.teachers)
