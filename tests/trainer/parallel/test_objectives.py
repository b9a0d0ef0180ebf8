"""Every objective trains on two processes what it trains on one, and none of them waits for another
that never comes: groups of equal scores, whose micro-batches are skipped, a last round with work for one
process alone, scouts, mixed sources of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from flow_trainer.models.load import load_policy
from flow_trainer.recipe import parse_recipe
from flow_trainer.recipe.update import (
    OnChosenSamples,
    OnFinishedSamples,
    OnTeachers,
    OnTrajectories,
)
from rank_runs import assert_close, audit, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

VELOCITY = {"kl": "velocity", "beta": 0.01}
ODE = {"dynamics": "ode"}
SCOUTS = {"candidates": 6, "scout_steps": 2}
CEILING = 0.424
"""Some groups are wholly brighter: their scores are equal."""
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {"update": {"kl": "gaussian", "beta": 0.01, "step_weight": "noise"}},
    "guard": {"update": VELOCITY},
    "dppo": {"update": {"clip_range": 1e-2, "steps_per_forward": 2}},
    "nft": {"sampling": ODE | SCOUTS, "update": VELOCITY | {"keep": [2, 2]}},
    "awm": {"sampling": ODE, "update": VELOCITY, "forward": {"old_beta": 0.1}},
    "epg": {"sampling": ODE, "update": {"kl": "kl2", "beta": 0.01}},
    "ram": {"sampling": ODE, "forward": {"times": "stratified"}},
    "dgpo": {"sampling": ODE | SCOUTS, "update": {"keep": [2, 2]}, "forward": {"share": "pairs"}},
    "crd": {"sampling": ODE, "update": VELOCITY, "forward": {"share": "times"}},
    "sft": {"sampling": ODE},
    "orw": {"sampling": ODE, "update": VELOCITY},
    "dpo": {"sampling": ODE | SCOUTS, "update": {"keep": [2, 2]}},
    "opd": {},
}


def test_no_objective_is_left_out() -> None:
    tables = (OnTrajectories, OnFinishedSamples, OnChosenSamples, OnTeachers)
    assert CASES.keys() == {name for table in tables for name in get_args(table)}


@pytest.fixture
def objective(
    brief: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> dict[str, Any]:
    """A recipe of the objective: two updates, each of three micro-batches that are groups."""
    case = CASES[request.param]
    brief["sampling"] |= {"prompts_per_epoch": 6, "micro_batch": 4} | case.get("sampling", {})
    brief["update"] |= {"objective": request.param, "kl": "none", "beta": 0.0}
    brief["update"] |= case.get("update", {})
    brief["rewards"]["brightness"] |= {"clip": [0.0, CEILING]}
    data = brief | {"epochs": 1, "forward": case.get("forward", {})}
    train = tmp_path / "prompts.txt"
    train.write_text("red\ngreen\nblue\nblack\nwhite\npink\n")
    data["prompts"] = {"train": str(train)}
    sources: dict[str, Any] = {n: {"train": str(train), "rewards": ["brightness"]} for n in "ab"}
    if request.param == "opd":
        for seed, source in enumerate(sources.values()):
            source["teacher"] = str(teacher(data, seed, tmp_path))
    if request.param in ("opd", "sft", "nft"):
        data["prompts"] = {"sources": sources}
    return data


def teacher(data: dict[str, Any], seed: int, folder: Path) -> Path:
    """An adapter that moves the model."""
    model = parse_recipe(data | {"update": {}}).model
    policy = load_policy(model, torch.device("cpu"), with_reference=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    policy.save(folder / f"teacher{seed}")
    return folder / f"teacher{seed}"


@pytest.mark.parametrize("objective", CASES, indirect=True)
def test_two_processes_train_what_one_trains(objective: dict[str, Any], tmp_path: Path) -> None:
    one = run(1, objective, tmp_path / "one")
    advantages = [row["advantage"] for row in audit(one)]
    equal = [not any(advantages[i : i + 4]) for i in range(0, len(advantages), 4)]
    assert len(equal) == 6
    assert 0 < sum(equal) < 6
    two = run(2, objective, tmp_path / "two")
    assert_close(one, two, 1, objective)
    assert audit(one) == audit(two)
    if objective["update"]["objective"] != "opd":  # which asks other teachers on every process
        sharded = run(2, objective | {"parallel": {"sharding": "full"}}, tmp_path / "sharded")
        assert_close(one, sharded, 1, objective)


@pytest.mark.parametrize("objective", ["clip"], indirect=True)
def test_two_processes_give_the_bonus_for_diversity_that_one_gives(
    objective: dict[str, Any], tmp_path: Path
) -> None:
    objective["sampling"] |= {"micro_batch": 2}  # no process has a whole group
    plain = audit(run(1, objective, tmp_path / "plain"))
    objective["advantage"] = {"diversity": 0.5}
    one = run(1, objective, tmp_path / "one")
    assert audit(one) != plain
    two = run(2, objective, tmp_path / "two")
    assert_close(one, two, 1, objective)
    assert audit(one) == audit(two)
