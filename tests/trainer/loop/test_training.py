"""The whole trainer against a real reward service: it learns, resumes, survives outages, stops."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ranks
from flow_trainer.algorithm.selection import top_and_bottom
from flow_trainer.errors import ConfigError, Interrupted, ScoringError
from flow_trainer.loop.evaluate import evaluate
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.scoring import Scorer
from flow_trainer.loop.train import train
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt, epoch_prompts, read_split
from flow_trainer.record.report import write_report
from processes import BRIGHTNESS, Service, Services
from recipes import write_recipe

pytestmark = pytest.mark.system


@pytest.fixture
def data(recipe_data: dict[str, Any], prompts_file: Path) -> Callable[..., dict[str, Any]]:
    def make(url: str, epochs: int, **sections: Any) -> dict[str, Any]:
        merged = {
            **recipe_data,
            "epochs": epochs,
            "rewards": {"brightness": {"url": url}},
            "prompts": {key: str(prompts_file) for key in ("train", "validation", "heldout")},
            "evaluation": {"every": 2, "num_steps": 4},
            "scoring": {"timeout_s": 20, "outage_wait_s": 60},
        }
        for name, values in sections.items():
            merged[name] = (
                {**merged.get(name, {}), **values} if isinstance(values, dict) else values
            )
        return merged

    return make


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def picture(run: Path, name: str) -> Image.Image:
    with Image.open(run / "images" / name) as image:
        image.load()
    return image


def checkpoint(
    run: Path, epoch: int, files: tuple[str, ...] = ("weights", "ema", "optimizer")
) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"epoch_{epoch:05d}"
    return {
        f"{name}/{k}": v
        for name in files
        for k, v in load_file(folder / f"{name}.safetensors").items()
    }


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def start_training(recipe: Path, out: Path, *flags: str) -> BaseProcess:
    """`flow-grpo train` in a process of its own; what it prints is in `printed` (out)."""
    arguments = ["train", str(recipe), "--out", str(out), *flags]
    return ranks.start(1, ranks.command, arguments, printed(out)).processes[0]


def printed(out: Path) -> Path:
    return out.with_suffix(".log")


def finish(process: BaseProcess, out: Path) -> str:
    """What a training that ended well has printed."""
    process.join(100)
    text = printed(out).read_text()
    assert process.exitcode == 0, text
    return text


def wait_for(condition: Callable[[], bool], process: BaseProcess, out: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.is_alive(), printed(out).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_reward_climbs_and_the_run_leaves_everything(
    brightness: Service, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = parse_recipe(
        data(
            brightness.http,
            20,
            sampling={"prompts_per_epoch": 4, "group_size": 8, "micro_batch": 16},
            update={"learning_rate": 1e-2},
            evaluation={"heldout_images_per_prompt": 2, "images_per_prompt": 2, "diversity": True},
            logging={"tensorboard": True, "image_every": 10},
        )
    )
    summary = train(recipe, run)
    rewards = [row["reward"] for row in metrics(run, "train")]
    assert len(rewards) == 20
    # one standard deviation inside a group is 0.0075: samples of one epoch differ by less
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.01
    assert summary["heldout_after"] > summary["heldout_before"] + 0.01
    for name in ("before", "after"):
        [row] = metrics(run, f"heldout_{name}")
        assert 0 < row["image_diversity"] == summary[f"heldout_diversity_{name}"]
    assert all(row["image_diversity"] > 0 for row in metrics(run, "validation"))
    assert json.loads((run / "summary.json").read_text()) == summary
    assert max(row["ratio_error"] for row in metrics(run, "train")) < 1e-6
    assert 0 <= summary["reward_wait_fraction"] < 1
    last = metrics(run, "train")[-1]
    # 4 sampling steps and 3 trained ones, 4 tokens per image; groups of equal rewards are skipped
    assert last["images_per_second"] * 4 * 4 < last["tokens_per_second"]
    assert last["tokens_per_second"] <= last["images_per_second"] * 7 * 4 * 1.001
    assert last["model_tflops"] > 0
    assert last["reward_bytes"] == 32 * 8 * 8 * 3
    assert 0 < last["reward_bytes_in_flight"] <= last["reward_bytes"]
    audit = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    assert len(audit) == 20 * 32
    assert set(audit[0]) >= {"prompt", "score", "rewards", "advantage", "image_sha256"}
    assert audit[0]["rewards"]["brightness"]["revision"]
    assert list((run / "tensorboard").glob("events.*"))
    assert len(list((run / "images").glob("samples_*.png"))) == 2
    fixed = {epoch: picture(run, f"fixed_{epoch:05d}.png") for epoch in (0, 10, 20)}
    assert len(list((run / "images").glob("fixed_*.png"))) == len(fixed)
    assert json.loads(fixed[0].info["prompts"]) == ["red", "green", "blue", "black", "white"]
    assert fixed[0].size == (5 * (8 + 2) + 2, 8 + 2 + 2)
    # what the reward likes is bright, and the noise is the same
    assert np.asarray(fixed[20]).mean() > np.asarray(fixed[10]).mean() > np.asarray(fixed[0]).mean()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["epoch_00019", "epoch_00020"]
    html = write_report(run).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert html.count("<svg") >= 4
    assert html.count("data:image/png") >= 2
    with pytest.raises(ConfigError, match="--resume"):
        train(recipe, run)


def test_killed_runs_resume_bit_for_bit(
    brightness: Service, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = data(brightness.http, 6)
    whole = tmp_path / "whole"
    train(parse_recipe(settings), whole)
    path, out = write_recipe(tmp_path, settings), tmp_path / "killed"
    for epoch in (2, 4):
        process = start_training(path, out, "--resume")
        done = out / "checkpoints" / f"epoch_{epoch:05d}" / "state.json"
        wait_for(done.exists, process, out)
        process.kill()
        process.join()
    finish(start_training(path, out, "--resume"), out)
    assert_identical(checkpoint(out, 6), checkpoint(whole, 6))
    for kind in ("train", "validation"):
        volatile = re.compile("_s$|_per_second$|_tflops$|_memory_gb$|_in_flight$")
        rows = [
            [{k: v for k, v in row.items() if not volatile.search(k)} for row in metrics(run, kind)]
            for run in (out, whole)
        ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("objective", "epochs", "gain"),
    [
        ("nft", 6, 0.003),
        ("awm", 5, 0.01),
        ("epg", 5, 0.01),
        ("ram", 8, 0.003),
        ("sft", 8, 0.003),
        ("orw", 8, 0.003),
        ("dpo", 6, 0.003),
    ],
)
def test_the_forward_process_climbs_and_resumes_bit_for_bit(
    brightness: Service,
    data: Callable[..., dict[str, Any]],
    tmp_path: Path,
    objective: str,
    epochs: int,
    gain: float,
) -> None:
    def settings(epochs: int) -> dict[str, Any]:
        return data(
            brightness.http,
            epochs,
            sampling={
                "dynamics": "ode",
                "prompts_per_epoch": 4,
                "group_size": 8,
                "micro_batch": 16,
            },
            update={
                "objective": objective,
                "learning_rate": 1e-2,
                "clip_range": 1.0,
                "kl": "velocity",
                "beta": 1e-4,
                "steps_per_forward": 3,
            },
            forward={"strength": 4.0 if objective == "ram" else 0.1, "temperature": 2.0},
            evaluation={"every": 0},
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(parse_recipe(settings(epochs)), whole)
    rewards = [row["reward"] for row in metrics(whole, "train")]
    assert rewards[-1] > rewards[0] + gain
    train(parse_recipe(settings(epochs - 2)), parts)
    train(parse_recipe(settings(epochs)), parts, resume=True)
    files = ("weights", "ema", "optimizer", "old")
    assert_identical(checkpoint(parts, epochs, files), checkpoint(whole, epochs, files))
    weights = checkpoint(whole, epochs, ("weights", "old"))
    assert not torch.equal(*(weights[f"{n}/proj_out.weight"] for n in ("weights", "old")))


def test_scouts_choose_what_is_drawn_in_full_and_trained(
    brightness: Service, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = data(
        brightness.http,
        1,
        sampling={"dynamics": "ode", "num_steps": 4, "candidates": 8, "scout_steps": 2},
        update={"objective": "nft", "keep": [2, 2], "clip_range": 1.0},
        evaluation={"every": 0},
    )
    recipe = parse_recipe(settings)
    train(recipe, tmp_path / "run")
    rows = [json.loads(r) for r in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    # the same images, drawn by hand: every candidate in few steps, then the chosen in full
    policy = load_policy(recipe.model, torch.device("cpu"), with_reference=False)
    prompts = read_split(recipe.prompts, "train")
    indices = epoch_prompts(len(prompts), 2, 0, recipe.seed)
    drawn = [prompts[index] for index in indices]

    def brightest(of: Recipe, chosen: list[int] | None = None) -> np.ndarray:
        images: list[torch.Tensor] = []
        rollout(
            policy, of, 0, drawn, indices, lambda rows, batch: images.append(batch), chosen=chosen
        )
        return torch.cat(images).float().mean((1, 2, 3)).numpy() / 255

    scouts = brightest(recipe.scouting).reshape(2, 8)
    everyone = np.ones(8, bool)
    chosen = [member for group in scouts for member in top_and_bottom(group, everyone, 2, 2)]
    full = brightest(recipe, chosen)
    assert [row["score"] for row in rows] == pytest.approx(full.tolist(), abs=1e-6)


def test_each_source_is_scored_by_its_own_rewards(
    brightness: Service, data: Callable[..., dict[str, Any]], prompts_file: Path, tmp_path: Path
) -> None:
    def source(**changes: Any) -> dict[str, Any]:
        return {"train": str(prompts_file), "validation": str(prompts_file), **changes}

    settings = data(
        brightness.http,
        2,
        rewards={name: {"url": brightness.http} for name in ("one", "other", "watched")},
        sampling={"prompts_per_epoch": 4, "micro_batch": 6},
        evaluation={"every": 2},
    )
    settings["rewards"].pop("brightness")
    settings["rewards"]["second"] = {"url": brightness.http, "monitor": True}
    settings["prompts"] = {
        "sources": {
            "plain": source(rewards=["one"], weight=3.0),
            "heavy": source(rewards=["other", "watched"], weights=[2.0, 0.0]),
        }
    }
    train(parse_recipe(settings), tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert Counter(row["source"] for row in rows) == {"plain": 24, "heavy": 8}
    for row in rows:
        if row["source"] == "plain":
            assert set(row["rewards"]) == {"one"}
            assert row["score"] == row["rewards"]["one"]["score"]
        else:
            assert set(row["rewards"]) == {"other", "watched"}
            assert row["score"] == 2 * row["rewards"]["other"]["score"]
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        assert len({row["source"] for row in group}) == 1
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-6)
    (validation,) = metrics(tmp_path, "validation")
    weighted = (3 * validation["plain/score"] + validation["heavy/score"]) / 4
    assert validation["score"] == pytest.approx(weighted)
    last = metrics(tmp_path, "train")[-1]
    assert last["failed"] == 0
    assert last["heavy/reward"] > last["plain/reward"]
    assert 0 < last["monitor.second"] < 1  # of the images of all sources


def test_an_outage_holds_the_epoch_and_costs_nothing(
    services: Services, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = services.start(BRIGHTNESS)
    settings = data(
        first.http,
        15,
        scoring={"timeout_s": 3},
        # one call an epoch: it is scored or it is not, whenever the service dies
        sampling={"micro_batch": 8},
        update={"updates_per_epoch": 1},
    )
    settings["evaluation"] = {"every": 0, "num_steps": 4}
    whole = tmp_path / "whole"
    train(parse_recipe(settings), whole)
    out = tmp_path / "held"
    process = start_training(write_recipe(tmp_path, settings), out)
    wait_for((out / "checkpoints" / "epoch_00002" / "state.json").exists, process, out)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    wait_for(lambda: "the epoch is held" in printed(out).read_text(), process, out)
    services.start(BRIGHTNESS, http_port=int(first.http.rpartition(":")[2]))
    finish(process, out)
    assert_identical(checkpoint(out, 15), checkpoint(whole, 15))
    assert all(row["failed"] == 0 for row in metrics(out, "train"))


def test_an_outage_in_an_evaluation_is_said_and_can_be_left(
    services: Services, data: Callable[..., dict[str, Any]], policy: Policy
) -> None:
    service = services.start(BRIGHTNESS)
    recipe = parse_recipe(data(service.http, 1, scoring={"timeout_s": 1}))
    told: list[list[str]] = []

    def leave() -> None:
        raise Interrupted("left")

    def hold(down: list[str]) -> Callable[[], None]:
        told.append(down)
        return leave

    scorer = Scorer(recipe.rewards, recipe.scoring)
    service.stop()
    try:
        with pytest.raises(Interrupted, match="left"):
            evaluate(policy, scorer, recipe, [Prompt("red")], 1, hold=hold)
    finally:
        scorer.close()
    assert told == [["brightness"]]


def test_sigterm_saves_and_the_run_goes_on_where_it_was(
    brightness: Service, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = data(brightness.http, 4, checkpoints={"every": 100})
    whole = tmp_path / "whole"
    train(parse_recipe(settings), whole)
    path, out = write_recipe(tmp_path, settings), tmp_path / "stopped"
    process = start_training(path, out)
    wait_for((out / "metrics.jsonl").exists, process, out)
    wait_for(lambda: bool(metrics(out, "train")), process, out)
    process.terminate()
    assert "saved" in finish(process, out)
    finish(start_training(path, out, "--resume"), out)
    assert_identical(checkpoint(out, 4), checkpoint(whole, 4))


def test_an_epoch_without_any_score_stops_with_the_reason(
    services: Services, data: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    marker = tmp_path / "fail"
    service = services.start(BRIGHTNESS, BRIGHTNESS_FAIL_FILE=str(marker))
    marker.touch()  # the warm-up before had to succeed
    settings = data(service.http, 1)
    settings["prompts"].pop("heldout")
    with pytest.raises(ScoringError, match="told to fail"):
        train(parse_recipe(settings), tmp_path / "run")
