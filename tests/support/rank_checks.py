"""What ranks check among themselves; every one runs all of it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from flow_trainer.models.load import load_policy
from flow_trainer.models.pieces import Pieces
from flow_trainer.parallel.sharding import whole
from flow_trainer.parallel.world import World, open_world, pick_device
from flow_trainer.recipe import Model, parse_recipe


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


TURNS = 3
"""Backwards of an update that `count_travel` looks at."""


def count_travel(data: dict[str, Any], sharding: str, out: Path) -> None:
    """What ranks exchange in an update of TURNS backwards, as travel-RANK.json: the types, and how
    many reductions."""
    recipe = parse_recipe(data)
    with open_world(pick_device("cpu"), sharding) as world:
        policy: Any = load_policy(
            recipe.model, pick_device("cpu"), with_reference=True, mesh=world.mesh
        )
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))
        texts = policy.encode(["red", "blue"])
        with _Collectives() as seen:
            for turn in range(TURNS):
                with torch.no_grad(), policy.reference():
                    policy.velocity(x, torch.tensor([0.9, 0.4]), texts)
                v = policy.velocity(x, torch.tensor([0.9, 0.4]), texts)
                policy.before_backward(last=turn == TURNS - 1)
                v.square().mean().backward()
        tuning: Any = policy._tuning
        for model in filter(None, (tuning.transformer, tuning._reference)):
            assert model._get_fsdp_state()._comm_ctx.post_forward_order == []
        gradients = [p.grad for p in policy.trainable().values()]
        assert all(
            isinstance(g, DTensor) and g.dtype == torch.float32 for g in gradients if g is not None
        )
        assert sum(g is not None for g in gradients) > len(gradients) / 2
    found = {
        "gathered": sorted(set(seen.types["_allgather_base_"])),
        "reduced": sorted(set(seen.types["_reduce_scatter_base_"])),
        "reductions": len(seen.types["_reduce_scatter_base_"]),
        "summed over nodes": len(seen.types["allreduce_"]),
    }
    (out / f"travel-{world.rank}.json").write_text(json.dumps(found))


class _Collectives(TorchDispatchMode):
    """The types of what travels, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, list[str]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sent = [a for a in args if isinstance(a, torch.Tensor)] or args[0]
            self.types[func.overloadpacket.__name__].append(str(sent[-1].dtype))
        return func(*args, **(kwargs or {}))


def save_gradients(data: dict[str, Any], sharding: str, file: Path) -> None:
    """The summed gradients of two micro-batches, one on each rank where there are two."""
    with open_world(pick_device("cpu"), sharding) as world:
        model = parse_recipe(data).model
        policy = load_policy(model, pick_device("cpu"), with_reference=False, mesh=world.mesh)
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))
        texts = policy.encode(["red", "blue"])
        mine = range(world.rank, 2, world.size)
        for k in mine:
            v = policy.velocity(x[[k]], torch.tensor([0.7]), texts[[k]])
            policy.before_backward(last=k == mine[-1])
            v.square().mean().backward()
        named = policy.trainable().items()
        found = {name: whole(p.grad) for name, p in named if p.grad is not None}
        if world.is_main:
            save_file(found, file)


def compare_pieces(model: dict[str, Any], out: Path) -> None:
    """A divided transformer has the values of a whole one, and no rank has read more than its part."""
    config, cpu = Model.model_validate(model), pick_device("cpu")

    def states(mesh: Any) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        policy: Any = load_policy(config, cpu, with_reference=True, mesh=mesh)
        tuning: Any = policy._tuning
        return [m.state_dict() for m in (tuning.transformer, tuning._reference) if m is not None]

    expected = states(None)
    read: list[int] = []
    of_pieces = Pieces._read

    def count(self: Pieces, name: str, rows: slice | None) -> torch.Tensor:
        found = of_pieces(self, name, rows)
        read.append(found.numel() if rows is not None else 0)
        return found

    Pieces._read = count
    with open_world(cpu, "full") as world:
        divided = states(world.mesh)
        assert len(divided) == len(expected)
        for state, other in zip(divided, expected, strict=True):
            assert state.keys() == other.keys()
            for name, value in state.items():
                assert value.dtype == other[name].dtype, name
                assert torch.equal(whole(value), other[name]), name
        weights = [sum(v.numel() for v in state.values()) for state in expected]
        assert 0 < sum(read) < sum(weights) * (1 / world.size + 0.1)
    (out / f"done-{world.rank}").touch()
