"""Several processes train what one trains, stop together, and resume on another number of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ranks
from flow_trainer.tensor_files import read_tensors
from processes import BRIGHTNESS, Service, Services, environment
from recipes import write_recipe

pytestmark = pytest.mark.system

KINDS = ("weights", "ema", "optimizer")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    services = Services(tmp_path_factory.mktemp("services"))
    yield services.start(BRIGHTNESS)
    services.stop()


@pytest.fixture
def data(reward: Service, recipe_data: dict[str, Any], prompts_file: Path) -> dict[str, Any]:
    """Four micro-batches to each of an epoch's two updates; every path of the loop."""
    return recipe_data | {
        "epochs": 2,
        "rewards": {"brightness": {"url": reward.http}},
        "prompts": {key: str(prompts_file) for key in ("train", "validation", "heldout")},
        "model": recipe_data["model"] | {"tuning": "lora", "lora_rank": 2},
        "sampling": recipe_data["sampling"] | {"prompts_per_epoch": 4, "micro_batch": 2},
        "update": recipe_data["update"] | {"kl": "gaussian", "beta": 0.01},
        "evaluation": {"every": 1, "num_steps": 4},
        "logging": {"tensorboard": False, "image_every": 1},
    }


def full(data: dict[str, Any], sharding: str = "auto") -> dict[str, Any]:
    return data | {
        "model": data["model"] | {"tuning": "full"},
        "parallel": {"sharding": sharding},
    }


def run(size: int, data: dict[str, Any], out: Path, resume: bool = False, **options: Any) -> Path:
    assert ranks.start(size, ranks.train, data, out, resume, **options).wait() == [0] * size
    return out


def state(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"epoch_{epoch:05d}"
    return {f"{k}/{n}": v for k in KINDS for n, v in read_tensors(folder / k).items()}


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = re.compile("_s$")
    return [
        {k: v for k, v in row.items() if not timed.search(k)} for row in rows if row["kind"] == kind
    ]


def audit(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]


def assert_identical(a: Path, b: Path, epoch: int) -> None:
    left, right = state(a, epoch), state(b, epoch)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_close(a: Path, b: Path, epoch: int, data: dict[str, Any]) -> None:
    """Equal up to the order in which float32 gradients are added.

    AdamW divides a gradient by its own size. Where the gradient itself is rounding (below eps = 1e-8
    times a few), a step may go either way by a learning rate: those are few, and bounded.
    """
    left, right = state(a, epoch), state(b, epoch)
    assert left.keys() == right.keys()
    rate = data["update"]["learning_rate"]
    for name in left:
        if name.startswith(("weights/", "ema/")):
            difference = (left[name] - right[name]).abs().float()
            assert float(difference.max()) <= 2 * rate * 2 * epoch
            assert float((difference > 1e-5).float().mean()) < 0.02, name
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


def test_one_two_and_four_processes_train_the_same(data: dict[str, Any], tmp_path: Path) -> None:
    one, two, four = (run(n, data, tmp_path / str(n)) for n in (1, 2, 4))
    for other in (two, four):
        assert_close(one, other, 2, data)
        # the first epoch is drawn by the same weights, in the same micro-batches
        first = [[row for row in audit(r) if row["epoch"] == 1] for r in (one, other)]
        assert first[0] == first[1]
        assert metrics(one, "heldout_before") == metrics(other, "heldout_before")
        with (
            np.load(one / "heldout" / "before.npz") as a,
            np.load(other / "heldout" / "before.npz") as b,
        ):
            assert np.array_equal(a["images"], b["images"])
        grids = [(r / "images" / "samples_00001.png").read_bytes() for r in (one, other)]
        assert grids[0] == grids[1]
        assert (other / "checkpoints" / "epoch_00002" / "adapter").is_dir()
        assert json.loads((other / "summary.json").read_text())["processes"] > 1


def test_a_run_changes_its_number_of_processes(data: dict[str, Any], tmp_path: Path) -> None:
    whole = run(1, data, tmp_path / "whole")
    for first, then in ((2, 1), (1, 2)):
        parts = run(first, data | {"epochs": 1}, tmp_path / f"{first}{then}")
        run(then, data, parts, resume=True)
        assert_close(whole, parts, 2, data)
        assert len(metrics(parts)) == 2


@pytest.mark.parametrize(("sharding", "size", "local_size"), [("full", 2, 2), ("hybrid", 4, 2)])
def test_sharded_full_fine_tuning_is_the_same(
    data: dict[str, Any], tmp_path: Path, sharding: str, size: int, local_size: int
) -> None:
    settings = full(data, sharding)
    one = run(1, settings, tmp_path / "one")
    parts = run(size, settings | {"epochs": 1}, tmp_path / "parts", local_size=local_size)
    run(size, settings, parts, resume=True, local_size=local_size)
    assert_close(one, parts, 2, data)
    checkpoint = parts / "checkpoints" / "epoch_00002"
    assert len(list((checkpoint / "weights").glob("*.safetensors"))) == local_size
    exported = read_tensors(checkpoint / "adapter" / "transformer" / "diffusion_pytorch_model")
    averaged = read_tensors(checkpoint / "ema")
    assert all(torch.equal(exported[name], averaged[name]) for name in exported if name in averaged)


def test_a_sharded_run_goes_on_alone_and_the_reverse(data: dict[str, Any], tmp_path: Path) -> None:
    settings = full(data)
    whole = run(1, settings, tmp_path / "whole")
    for first, then in ((2, 1), (1, 2)):
        parts = run(first, settings | {"epochs": 1}, tmp_path / f"{first}{then}")
        run(then, settings, parts, resume=True)
        assert_close(whole, parts, 2, data)


def test_sigterm_to_one_stops_all_and_nothing_is_lost(data: dict[str, Any], tmp_path: Path) -> None:
    settings = data | {"epochs": 4, "checkpoints": {"every": 100, "keep": 1}}
    out = tmp_path / "stopped"
    started = ranks.start(2, ranks.train, settings, out)
    wait_until(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 0)
    pid = started.processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert started.wait() == [0, 0]
    assert sorted(path.name for path in out.glob("stopped-*")) == ["stopped-0", "stopped-1"]
    run(2, settings, out, resume=True)
    assert_identical(out, run(2, settings, tmp_path / "whole"), 4)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_restarts_a_killed_run_where_it_was(data: dict[str, Any], tmp_path: Path) -> None:
    settings = data | {"epochs": 4}
    recipe, out = write_recipe(tmp_path, settings), tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command += ["--monitor-interval=0.1", "-m", "flow_trainer", "train", str(recipe)]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((out / "checkpoints" / "epoch_00002" / "state.json").exists)
    os.kill(max(children(process.pid)), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors[-2000:]
    assert "resuming after epoch" in errors
    assert_identical(out, run(2, settings, tmp_path / "whole"), 4)
    assert [row["epoch"] for row in metrics(out)] == [1, 2, 3, 4]


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
