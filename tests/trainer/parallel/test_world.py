"""Which rank does what; agreement between real processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ranks
from flow_trainer.errors import ConfigError
from flow_trainer.loop.rollout import micro_batches
from flow_trainer.parallel.attempt import attempt_name
from flow_trainer.parallel.world import Turn, World, open_world, pick_device, restarted
from flow_trainer.recipe import parse_recipe
from flow_trainer.recipe.checks import busy_share
from flow_trainer.record.quiet_log import QuietLog
from flow_trainer.record.runlog import RunLog
from rank_checks import check_collectives

BATCHES = list(micro_batches(14, 3))  # 5 of them, the last one shorter
SHARDED = object()


def counted(world: World) -> list[range]:
    return [turn.rows for turn in world.turns(BATCHES) if turn.counts]


@pytest.mark.parametrize("mesh", [None, SHARDED])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_every_batch_counts_once(size: int, mesh: Any) -> None:
    shared = [counted(World(rank, size, mesh)) for rank in range(size)]
    together = sorted(chain.from_iterable(shared), key=lambda rows: rows.start)
    assert together == BATCHES
    turns = {len(list(World(rank, size, mesh).turns(BATCHES))) for rank in range(size)}
    assert turns == {-(-len(BATCHES) // size)}


def test_a_sharded_model_runs_equally_often_on_every_rank() -> None:
    def turns(rank: int) -> list[Turn]:
        world = World(rank, 2, SHARDED)
        return list(world.turns(BATCHES, lambda rows: rows.start in (3, 12)))

    # the middle round is wanted by nobody; in the last one rank 1 has no batch of its own
    assert turns(0) == [Turn(range(0, 3), False), Turn(range(12, 14), True)]
    assert turns(1) == [Turn(range(3, 6), True), Turn(range(9, 12), False)]


def test_whole_models_skip_what_is_not_wanted() -> None:
    turns = World(1, 2).turns(BATCHES, lambda rows: rows.start == 3)
    assert list(turns) == [Turn(range(3, 6), True), *[Turn(range(0), False)] * 2]


def test_too_many_processes_are_refused(recipe_data: dict[str, Any]) -> None:
    recipe = parse_recipe(recipe_data)  # 8 images, 2 updates, micro-batches of 4
    with pytest.raises(ConfigError, match=r"sampling\.micro_batch to 2 or less"):
        busy_share(recipe, 2)
    recipe_data["sampling"]["micro_batch"] = 1
    assert busy_share(parse_recipe(recipe_data), 4) == 1
    assert busy_share(parse_recipe(recipe_data), 3) == pytest.approx(2 / 3)


def test_the_quiet_log_leaves_nothing_out() -> None:
    public = [name for name, value in vars(RunLog).items() if callable(value) and name[0] != "_"]
    assert [name for name in public if name not in vars(QuietLog)] == []


def test_torchrun_says_when_it_has_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert restarted()


def test_alone_nothing_is_exchanged() -> None:
    with open_world(pick_device("cpu"), "full") as world:
        assert world.is_main
        assert not world.lockstep
        assert world.any(True)
        assert world.exchange({"a": 1}) == [{"a": 1}]
        assert not torch.distributed.is_initialized()


def test_ranks_of_a_restart_do_not_meet_dead_ones() -> None:
    """torchrun's store outlives its workers: here the first start's keys are all still in it."""
    store = dist.HashStore()

    def start() -> list[str]:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: attempt_name(store, rank, 3), (1, 2, 0)))

    first, second = set(start()), set(start())
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.system
def test_three_processes_agree(tmp_path: Path) -> None:
    assert ranks.start(3, check_collectives, tmp_path).wait() == [0, 0, 0]
    assert len(list(tmp_path.glob("done-*"))) == 3
