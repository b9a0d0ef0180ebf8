"""The watch: rings in runs made to hack, and not in healthy ones; monitors never train."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from clip_checkpoints import write_clip
from flow_trainer.errors import ConfigError, Interrupted
from flow_trainer.loop.train import train
from flow_trainer.recipe import parse_recipe
from processes import Service, Services

pytestmark = pytest.mark.system


@pytest.fixture
def data(recipe_data: dict[str, Any], brightness: Service) -> dict[str, Any]:
    """Twenty-four epochs on the brightness of images."""
    recipe_data["epochs"] = 24
    recipe_data["rewards"] = {"bright": {"url": brightness.http}}
    recipe_data["watch"] = {"band_epochs": 5, "monitor_images": 4}
    recipe_data["checkpoints"] = {"every": 100, "keep": 1}
    return recipe_data


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_reward_that_likes_dark_images_rings(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = data["rewards"]["bright"]["url"]
    data["rewards"] = {
        "dark": {"url": url, "weight": -1.0},
        "second": {"url": url, "monitor": True},
    }
    data["watch"]["monitor_images"] = 16
    # slow at first: what falls within the first epochs belongs to the band
    data["update"] |= {"learning_rate": 3e-2, "clip_range": 1.0, "warmup_updates": 24}
    data["sampling"] |= {"group_size": 8, "micro_batch": 8}
    train(parse_recipe(data), tmp_path)
    alarms = {row["quantity"]: row for row in rows(tmp_path, "alarm")}
    assert "monitor.second" in alarms
    fallen = alarms["monitor.second"]
    assert fallen["value"] < fallen["band_low"]
    assert fallen["band_high"] is None
    said = " ".join(capsys.readouterr().err.split())
    assert f"alarm at epoch {fallen['epoch']}: second fell from" in said
    # with on_alarm = stop, the same run leaves there, saved; resumed, it goes on
    stopped = tmp_path / "stopped"
    recipe = parse_recipe(data | {"watch": {**data["watch"], "on_alarm": "stop"}})
    first = min(row["epoch"] for row in alarms.values())
    with pytest.raises(Interrupted, match=f"alarm at epoch {first}"):
        train(recipe, stopped)
    assert [row["epoch"] for row in rows(stopped, "train")] == list(range(1, first + 1))
    rang = [row["quantity"] for row in rows(stopped, "alarm")]
    with contextlib.suppress(Interrupted):
        train(recipe, stopped, resume=True)
    assert len(rows(stopped, "train")) > first
    assert [row["quantity"] for row in rows(stopped, "alarm")][: len(rang)] == rang
    repeated = [row["quantity"] for row in rows(stopped, "alarm") if row["epoch"] == first + 1]
    assert not set(repeated) & set(rang)


def test_a_resumed_run_watches_as_its_recipe_says_now(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A band too long to ring in ten epochs; then one that has been left long before."""
    data["rewards"]["bright"]["weight"] = -1.0
    data["update"] |= {"learning_rate": 3e-2, "clip_range": 1.0, "warmup_updates": 16}
    data["sampling"] |= {"group_size": 8, "micro_batch": 8}
    data |= {"epochs": 14, "watch": {"band_epochs": 12}}
    train(parse_recipe(data), tmp_path)
    assert rows(tmp_path, "alarm") == []
    data |= {"epochs": 16, "watch": {"band_epochs": 3}}
    train(parse_recipe(data), tmp_path, resume=True)
    assert "from here on watch.band_epochs = 3 was 12" in capsys.readouterr().err
    rang = [(row["epoch"], row["quantity"]) for row in rows(tmp_path, "alarm")]
    assert [entry for entry in rang if entry[1] == "latent_norm"] == [(15, "latent_norm")]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_healthy_runs_are_silent(data: dict[str, Any], tmp_path: Path, seed: int) -> None:
    data["update"] |= {"learning_rate": 1e-4, "kl": "velocity", "beta": 0.1}
    train(parse_recipe(data | {"seed": seed}), tmp_path)
    assert rows(tmp_path, "alarm") == []
    first = rows(tmp_path, "train")[0]
    assert {"latent_norm", "saturation", "sharpness", "diversity", "kl"} <= set(first)


def test_a_monitor_changes_nothing_and_may_be_down(data: dict[str, Any], tmp_path: Path) -> None:
    data |= {"epochs": 2, "scoring": {"timeout_s": 2.0}}
    train(parse_recipe(data), tmp_path / "without")
    data["rewards"]["other"] = {"url": "http://127.0.0.1:9", "monitor": True}
    train(parse_recipe(data), tmp_path / "with")
    trained = [[row["reward"] for row in rows(tmp_path / n, "train")] for n in ("without", "with")]
    assert trained[0] == trained[1]


def test_embeddings_of_a_clip_reward_are_watched(
    data: dict[str, Any], services: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real service with a checkpoint of random weights; the same run does not depend on it."""
    folder = write_clip(tmp_path / "clip", activation="quick_gelu")
    clip = services.start(
        "-m", "reward_services", "clipscore", REWARD_CLIPSCORE_WEIGHTS=str(folder)
    )
    data |= {"epochs": 2}
    train(parse_recipe(data), tmp_path / "without")
    data["rewards"]["clip"] = {"url": clip.grpc, "monitor": True}
    data["watch"] = {"embeddings": "clip", "monitor_images": 4}
    train(parse_recipe(data), tmp_path / "with")
    without, watched = (rows(tmp_path / name, "train") for name in ("without", "with"))
    assert [row["reward"] for row in watched] == [row["reward"] for row in without]
    assert all(0 < row["embedding_diversity"] < 2 for row in watched)
    assert "embedding_diversity" not in without[0]
    # a reward that answers none is said, and holds nothing
    data["watch"]["embeddings"] = "bright"
    train(parse_recipe(data), tmp_path / "none")
    said = " ".join(capsys.readouterr().err.split())
    assert "watch.embeddings = bright: it answered no embeddings of two images of a group" in said
    data["watch"]["embeddings"] = "clap"
    with pytest.raises(ConfigError, match="clap is none of the rewards"):
        parse_recipe(data)


def test_a_recipe_needs_a_reward_that_trains(recipe_data: dict[str, Any]) -> None:
    recipe_data["rewards"]["bright"]["monitor"] = True
    with pytest.raises(ConfigError, match="one without monitor = true must train"):
        parse_recipe(recipe_data)
    recipe_data["rewards"]["x"] = {"url": "http://127.0.0.1:1"}
    recipe_data["rewards"]["bright"]["weight"] = 2.0
    with pytest.raises(ConfigError, match="a monitor never trains"):
        parse_recipe(recipe_data)
