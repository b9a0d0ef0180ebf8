"""What goes on while rewards score: updates on complete groups, the next epoch's sampling."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flow_trainer.errors import ConfigError
from flow_trainer.loop.feedback import Feedback, epoch_advantages
from flow_trainer.loop.rollout import shares
from flow_trainer.loop.scoring import Job
from flow_trainer.loop.train import train
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.record.scores import Scores
from processes import Service
from reward_api import ScoreBatch


class Waiter:
    """A scorer that knows the answers and remembers what was waited for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.waited: list[range] = []

    def collect(self, jobs: list[Job], hold: Any, check: Any) -> Scores:
        self.waited += [job.rows for job in jobs]
        values = np.concatenate([self.values[job.rows.start : job.rows.stop] for job in jobs])
        batch = ScoreBatch.empty(len(values))
        batch.values[:], batch.valid[:] = values, np.isfinite(values)
        return Scores(values, batch.valid, {"bright": batch}, wait_s=1.0)


def feedback(
    recipe: Recipe, values: np.ndarray, bonus: np.ndarray | None = None
) -> tuple[Feedback, Waiter]:
    rows = chain.from_iterable(shares(recipe, recipe.images_per_epoch))
    jobs: list[Any] = [Job(r, np.empty(0), [], [], [], {}) for r in rows]  # pyright: ignore
    waiter = Waiter(values)
    hold: Any = lambda *_: lambda: None  # noqa: E731
    return Feedback(recipe, waiter, jobs, hold, bonus=bonus), waiter  # pyright: ignore


@pytest.fixture
def epoch_data(recipe_data: dict[str, Any]) -> dict[str, Any]:
    """4 groups of 4 images, 2 updates, micro-batches of 3."""
    recipe_data["sampling"] |= {"prompts_per_epoch": 4, "micro_batch": 3}
    recipe_data["update"]["updates_per_epoch"] = 2
    return recipe_data


def test_a_bonus_is_added_to_the_rewards_of_its_samples(epoch_data: dict[str, Any]) -> None:
    values, bonus = np.random.default_rng(0).random((2, 16))
    values[5] = np.nan
    recipe = parse_recipe(epoch_data | {"scoring": {"overlap": "updates"}})
    got, _ = feedback(recipe, values, bonus)
    whole = epoch_advantages(recipe, {"bright": values + bonus}, np.isfinite(values))
    got.ready(0)
    got.ready(1)
    torch.testing.assert_close(got.advantages.values, whole.values)
    assert torch.equal(got.advantages.used, whole.used)
    assert got.scores.mean() == pytest.approx(np.nanmean(values)), "the score itself has no bonus"


def test_an_update_waits_for_its_own_share_only(epoch_data: dict[str, Any]) -> None:
    values = np.random.default_rng(0).random(16)
    values[5] = np.nan
    recipe = parse_recipe(epoch_data | {"scoring": {"overlap": "updates"}})
    got, waiter = feedback(recipe, values)
    whole = epoch_advantages(recipe, {"bright": values}, np.isfinite(values))
    got.ready(0)
    assert waiter.waited == [range(0, 3), range(3, 6), range(6, 8)]
    assert torch.equal(got.advantages.values[:2], whole.values[:2])
    assert not got.advantages.used[2:].any()
    got.ready(1)
    assert torch.equal(got.advantages.values, whole.values)
    assert torch.equal(got.advantages.used, whole.used)
    assert got.advantages.metrics == whole.metrics
    assert got.wait_s == got.scores.wait_s == 2.0


def test_without_it_the_first_update_waits_for_everything(epoch_data: dict[str, Any]) -> None:
    got, waiter = feedback(parse_recipe(epoch_data), np.random.default_rng(0).random(16))
    got.ready(0)
    assert len(waiter.waited) == 6
    got.ready(1)
    assert len(waiter.waited) == 6


@pytest.mark.parametrize("overlap", ["sampling", "updates"])
def test_an_epoch_without_a_score_is_an_error_a_share_is_not(
    epoch_data: dict[str, Any], overlap: str
) -> None:
    recipe = parse_recipe(epoch_data | {"scoring": {"overlap": overlap}})
    half = np.full(16, np.nan)
    half[8:] = np.arange(8)
    got, _ = feedback(recipe, half)
    for update in range(2):
        got.ready(update)
    assert got.advantages.used.sum() == 8


def test_what_needs_all_scores_is_refused(epoch_data: dict[str, Any]) -> None:
    data = epoch_data | {"scoring": {"overlap": "updates"}, "advantage": {"std": "global"}}
    with pytest.raises(ConfigError, match=r"advantage\.std = global needs"):
        parse_recipe(data)


@pytest.fixture
def settings(brightness: Service, epoch_data: dict[str, Any]) -> dict[str, Any]:
    return epoch_data | {"epochs": 4, "rewards": {"bright": {"url": brightness.http}}}


def run(data: dict[str, Any], folder: Path, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """Final weights of every kind, and the rows of the epochs."""
    train(parse_recipe(data), folder, **options)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    state = {
        f"{file.stem}/{name}": tensor
        for file in newest.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return state, [row for row in map(json.loads, lines) if row["kind"] == "train"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.system
def test_updating_early_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, _ = run(settings, tmp_path / "plain")
    early, _ = run(settings | {"scoring": {"overlap": "updates"}}, tmp_path / "early")
    assert_same(plain, early)


@pytest.mark.system
@pytest.mark.parametrize("objective", ["clip", "nft"])
def test_sampling_ahead_is_one_epoch_stale_and_resumes_bit_for_bit(
    settings: dict[str, Any], tmp_path: Path, objective: str
) -> None:
    settings["scoring"] = {"overlap": "epoch"}
    if objective == "nft":
        settings["sampling"]["dynamics"] = "ode"
        settings["update"] |= {"objective": "nft", "updates_per_epoch": 2}
    whole, rows = run(settings, tmp_path / "whole")
    assert [row["staleness"] for row in rows] == [0, 1, 1, 1]
    if objective == "clip":
        assert rows[0]["ratio_error"] < 1e-6 < rows[1]["ratio_error"]
    run(settings | {"epochs": 2}, tmp_path / "parts")
    parts, again = run(settings, tmp_path / "parts", resume=True)
    assert_same(parts, whole)
    assert [row["reward"] for row in again] == [row["reward"] for row in rows]
