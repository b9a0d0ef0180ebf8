"""The processes of a run: one per GPU under torchrun, or this one alone.

All sizes of a recipe are global. Every rank cuts an epoch into the same micro-batches and takes those
whose number is its own modulo the world's size, so a result does not depend on how many ranks there
are. Tensors go over NCCL (gloo on CPUs). Everything that may wait for the outside, such as scores,
goes over a second group on CPUs whose collectives practically never time out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from flow_trainer.errors import ConfigError, Interrupted
from flow_trainer.parallel.attempt import attempt_store

STATUS_TIMEOUT = timedelta(days=30)
"""Longer than any outage of a reward that a run sits out."""
BUCKET_ELEMENTS = 2**26
"""Gradient elements per all-reduce: an adapter goes in one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a rank does in one round of micro-batches."""

    rows: range
    """Empty when there is nothing to do."""
    counts: bool
    """False when the rank runs `rows` only to take part in the collectives of a sharded model: the
    result belongs to another rank, or to nobody."""


@dataclass(frozen=True, slots=True)
class World:
    """Rank `rank` of `size`. The default is a process alone, for which every method is free and
    torch.distributed is never touched."""

    rank: int = 0
    size: int = 1
    mesh: Any = field(default=None, repr=False)
    """DeviceMesh over which parameters are sharded; None where every rank has them all."""
    status: Any = field(default=None, repr=False)
    """Process group on CPUs for all that is not a tensor of the model."""

    @property
    def lockstep(self) -> bool:
        """Parameters are sharded: every forward is a collective, so all ranks run equally many."""
        return self.mesh is not None

    @property
    def is_main(self) -> bool:
        """The rank that writes files and talks."""
        return self.rank == 0

    def turns(
        self, batches: Sequence[range], wanted: Callable[[range], bool] = lambda rows: True
    ) -> Iterator[Turn]:
        """This rank's micro-batches, one turn per round of `size`; every rank gets as many turns,
        except that a round without any `wanted` batch is left out when its turns would be forwards."""
        own = [batches[k] for k in range(self.rank, len(batches), self.size)]
        spare = own[-1] if own else batches[0]
        for number, start in enumerate(range(0, len(batches), self.size)):
            useful = number < len(own) and wanted(own[number])
            if useful:
                yield Turn(own[number], True)
            elif not self.lockstep:
                yield Turn(range(0), False)
            elif any(map(wanted, batches[start : start + self.size])):
                yield Turn(own[number] if number < len(own) else spare, False)

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set, on every rank."""
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.status)
        return bool(found)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank. The value must survive JSON (NaN does)."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.tensor(0) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor(len(data)), group=self.status)
        longest = int(max(sizes))
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        dist.all_gather(parts, padded, group=self.status)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def gather_rows(self, rows: Sequence[int], values: np.ndarray) -> np.ndarray:
        """All ranks' `values` (len(rows), ...) in the order of their rows, on rank 0; an empty array
        elsewhere. Ranks without rows pass any array of the right type."""
        if self.size == 1:
            return values
        shapes = self.exchange([list(rows), list(values.shape[1:])])
        most = max(len(numbers) for numbers, _ in shapes)
        shape = next(tail for numbers, tail in shapes if numbers)
        padded = np.zeros((most, *shape), values.dtype)
        padded[: len(rows)] = values.reshape(len(rows), *shape)
        mine = torch.from_numpy(padded)
        if not self.is_main:
            dist.gather(mine, group=self.status)
            return values[:0]
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.gather(mine, parts, group=self.status)
        kept = [part[: len(n)].numpy() for part, (n, _) in zip(parts, shapes, strict=True)]
        order = np.argsort(np.concatenate([np.array(n, int) for n, _ in shapes]))
        return np.concatenate(kept)[order]

    def barrier(self) -> None:
        """Waits for all ranks, however long it takes."""
        self.any(False)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with rank 0's."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the ranks. A rank may have none, because all its
        micro-batches were skipped; a parameter without a gradient on any rank keeps none."""
        if self.size == 1 or self.lockstep:
            return  # sharded parameters are summed in the backward
        parameters = list(parameters)
        flags = torch.tensor([float(p.grad is not None) for p in parameters])
        dist.all_reduce(flags, group=self.status)
        used = [p for p, flag in zip(parameters, flags.tolist(), strict=True) if flag]
        for bucket in _buckets(used):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            for p, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = grad.view_as(p)


ALONE = World()


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    filled = 0
    for parameter in parameters:
        if bucket and filled + parameter.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += parameter.numel()
    if bucket:
        yield bucket


def is_main_process() -> bool:
    """Whether this is rank 0 by torchrun's environment, before any group exists."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether torchrun started this process again after a failure or a change of nodes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; under torchrun, each rank of a node has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: use auto, cpu or cuda ({error})") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r}: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device = {name!r}, but torch {torch.__version__} sees no GPU: install a torch build "
            "with CUDA and a driver, or set device = cpu"
        )
    if device.type == "cuda" and device.index is not None:
        _check_index(name, device.index)
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun starts more processes on this node than its {torch.cuda.device_count()} GPUs: "
            "lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)


def _check_index(name: str, index: int) -> None:
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r}, but there are {torch.cuda.device_count()} GPUs: count from cuda:0"
        )


@contextmanager
def open_world(device: torch.device, sharding: str) -> Iterator[World]:
    """Joins the other processes that torchrun started; a process alone stays alone. `sharding`: none,
    full or hybrid."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    store, rank, size = attempt_store()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
    )
    mesh = None
    if sharding != "none":
        from flow_trainer.parallel.sharding import make_mesh

        mesh = make_mesh(sharding, device.type, size, int(os.environ["LOCAL_WORLD_SIZE"]))
    status = dist.new_group(backend="gloo", timeout=STATUS_TIMEOUT)
    try:
        yield World(rank, size, mesh, status)
    except Interrupted:
        dist.destroy_process_group()
        raise
    # not after other errors: a peer may never arrive, and torchrun ends the ranks that are left
    dist.destroy_process_group()
