"""What ranks check among themselves; every one runs all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flow_trainer.parallel.world import World, open_world, pick_device


def check_collectives(out: Path) -> None:
    with open_world(pick_device("cpu"), "none") as world:
        rank = world.rank
        assert world.any(rank == 2)
        assert not world.any(False)
        values = world.exchange(["x" * 5 * rank, float("nan")])
        assert [len(text) for text, _ in values] == [0, 5, 10]
        assert np.isnan(values[0][1])
        rows = [[1, 4], [], [0, 2, 3]][rank]
        images = np.array(rows, np.uint8).reshape(-1, 1, 1, 1).repeat(3, -1)
        gathered = world.gather_rows(rows, images if rows else np.zeros(0, np.uint8))
        assert gathered.reshape(-1, 3)[:, 0].tolist() == ([0, 1, 2, 3, 4] if rank == 0 else [])
        check_sum(world)
        parameter = torch.nn.Parameter(torch.full((2,), float(rank)))
        world.broadcast([parameter])
        assert parameter.tolist() == [0, 0]
    (out / f"done-{rank}").touch()


def check_sum(world: World) -> None:
    """The second parameter has a gradient on one rank only, the third on none."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    parameters[0].grad = torch.full((2, 2), float(world.rank))
    if world.rank == 1:
        parameters[1].grad = torch.ones(2, 2)
    world.sum_gradients(parameters)
    assert parameters[0].grad.tolist() == [[3, 3], [3, 3]]
    assert parameters[1].grad is not None
    assert parameters[1].grad.tolist() == [[1, 1], [1, 1]]
    assert parameters[2].grad is None
