"""Several processes train what one trains, stop together, and resume on another number of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ranks
from flow_trainer.algorithm.ema import EMA_STEP
from flow_trainer.record.tensor_files import read_tensors
from processes import BRIGHTNESS, Services
from rank_runs import assert_close, assert_identical, audit, metrics, resumed, run
from recipes import write_recipe

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_one_two_and_four_processes_train_the_same(data: dict[str, Any], tmp_path: Path) -> None:
    one, two, four = (run(n, data, tmp_path / str(n)) for n in (1, 2, 4))
    for other in (two, four):
        assert_close(one, other, 2, data)
        # the first epoch is drawn by the same weights, in the same micro-batches
        first = [[row for row in audit(r) if row["epoch"] == 1] for r in (one, other)]
        assert first[0] == first[1]
        assert metrics(one, "heldout_before") == metrics(other, "heldout_before")
        archives = [np.load(r / "heldout" / "before.npz") for r in (one, other)]
        assert np.array_equal(archives[0]["images"], archives[1]["images"])
        grids = [(r / "images" / "samples_00001.png").read_bytes() for r in (one, other)]
        assert grids[0] == grids[1]
        assert (other / "checkpoints" / "epoch_00002" / "adapter").is_dir()
        assert json.loads((other / "summary.json").read_text())["processes"] > 1
    for size, source in ((1, two), (2, one)):
        out = resumed(size, data, source, tmp_path / f"{source.name} to {size}")
        assert_close(one, out, 2, data)
        assert len(metrics(out)) == 2


def test_sharded_full_fine_tuning_is_the_same(full: dict[str, Any], tmp_path: Path) -> None:
    one, two = (run(n, full, tmp_path / str(n)) for n in (1, 2))
    assert_close(one, two, 2, full)
    checkpoint = two / "checkpoints" / "epoch_00002"
    assert len(list((checkpoint / "weights").glob("*.safetensors"))) == 2
    exported = load_file(checkpoint / "adapter/transformer/diffusion_pytorch_model.safetensors")
    averaged = read_tensors(checkpoint / "ema")
    assert set(averaged) - set(exported) == {EMA_STEP}
    assert all(torch.equal(exported[n], averaged[n]) for n in averaged if n != EMA_STEP)
    for size, source in ((1, two), (2, one)):
        out = resumed(size, full, source, tmp_path / f"{source.name} to {size}")
        assert_close(one, out, 2, full)


def test_nodes_of_a_sharded_run_hold_copies(
    brief: dict[str, Any], full: dict[str, Any], tmp_path: Path
) -> None:
    brief |= {"epochs": 1, "model": full["model"]}
    one = run(1, brief, tmp_path / "one")
    nodes = run(4, brief, tmp_path / "two nodes of two", local_size=2)
    assert_close(one, nodes, 1, brief)


def test_sharded_blocks_compile(brief: dict[str, Any], tmp_path: Path) -> None:
    model = brief["model"] | {"tuning": "full", "gradient_checkpointing": True}
    brief |= {"epochs": 1, "model": model, "update": brief["update"] | {"kl": "none", "beta": 0.0}}
    one, two = run(1, brief, tmp_path / "one"), tmp_path / "two"
    assert ranks.start(2, ranks.train_compiled, brief, two).wait() == [0, 0]
    assert_close(one, two, 1, brief)


def test_sharded_adapters_are_the_same(brief: dict[str, Any], tmp_path: Path) -> None:
    """With nft, which swaps a second set of weights in for half of its forwards."""
    brief |= {"epochs": 1, "scoring": {"overlap": "updates"}, "parallel": {"sharding": "full"}}
    brief["sampling"] |= {"dynamics": "ode"}
    brief["update"] |= {"objective": "nft", "kl": "velocity"}
    one, two = (run(n, brief, tmp_path / str(n)) for n in (1, 2))
    assert_close(one, two, 1, brief)
    file = "checkpoints/epoch_00001/adapter/pytorch_lora_weights.safetensors"
    adapters = [load_file(r / file) for r in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weight in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_two_processes_follow_the_gradients_that_one_follows(
    brief: dict[str, Any], full: dict[str, Any], tmp_path: Path, tuning: str
) -> None:
    brief |= {"epochs": 1, "model": (brief if tuning == "lora" else full)["model"]}
    brief["sampling"] |= {"dynamics": "ode", "window": {"kind": "random", "size": 1, "lo": 2}}
    changes = {"objective": "refl", "updates_per_epoch": 1, "kl": "velocity"}
    brief["update"] |= changes
    one, two = (run(n, brief, tmp_path / str(n)) for n in (1, 2))
    assert_close(one, two, 1, brief)
    assert metrics(two)[0]["reward_slope"] > 0


def test_sigterm_to_one_rank_stops_all_and_nothing_is_lost(
    services: Services, brief: dict[str, Any], tmp_path: Path
) -> None:
    """Once while it samples or trains, and once while an outage of the reward holds the epoch."""
    first = services.start(BRIGHTNESS)
    brief["rewards"]["brightness"]["url"] = first.http
    brief |= {"checkpoints": {"every": 10**6}, "scoring": {"timeout_s": 2, "outage_wait_s": 300}}
    endless, out = brief | {"epochs": 10**6}, tmp_path / "stopped"

    started = ranks.start(2, ranks.train, endless, out)
    wait_until(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 0)
    stop(started, 1, out)
    before = newest(out)

    started = ranks.start(2, ranks.train, endless, out, True)
    wait_until(lambda: len(metrics(out)) > before)
    first.process.kill()
    first.process.wait()
    wait_until(lambda: newest(out) > before)
    stop(started, 0, out)

    services.start(BRIGHTNESS, http_port=int(first.http.rpartition(":")[2]))
    whole = brief | {"epochs": newest(out) + 1}
    run(2, whole, out, resume=True)
    assert_identical(out, run(2, whole, tmp_path / "whole"), whole["epochs"])
    assert [row["epoch"] for row in metrics(out)] == list(range(1, whole["epochs"] + 1))


def stop(started: ranks.Ranks, rank: int, out: Path) -> None:
    pid = started.processes[rank].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert started.wait() == [0, 0]
    left = sorted(out.glob("stopped-*"))
    assert [path.name for path in left] == ["stopped-0", "stopped-1"]
    for path in left:
        path.unlink()


def newest(out: Path) -> int:
    """Number of the last checkpoint."""
    return max(int(p.parent.name[-5:]) for p in out.glob("checkpoints/epoch_*/state.json"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_restarts_a_killed_run_where_it_was(brief: dict[str, Any], tmp_path: Path) -> None:
    brief |= {"epochs": 4}
    recipe, out = write_recipe(tmp_path, brief), tmp_path / "killed"
    log = tmp_path / "messages"
    arguments = ["train", str(recipe), "--out", str(out)]
    started = ranks.start(1, ranks.elastic, arguments, 2, log, daemon=False)
    try:
        wait_until((out / "checkpoints" / "epoch_00002" / "state.json").exists)
        os.kill(max(children(started.processes[0].pid)), signal.SIGKILL)
        status = started.wait()
    finally:
        started.processes[0].terminate()
    messages = log.read_text()
    assert status == [0], messages[-6000:]
    assert "resuming after epoch" in messages
    assert_identical(out, run(2, brief, tmp_path / "whole"), 4)
    assert [row["epoch"] for row in metrics(out)] == [1, 2, 3, 4]


def children(pid: int | None) -> list[int]:
    """Processes that `pid` started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
