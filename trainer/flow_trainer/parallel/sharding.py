"""Parameters, gradients and optimizer state divided over ranks: FSDP2 by transformer block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from flow_trainer.errors import ConfigError


def make_mesh(kind: str, device_type: str, size: int, local_size: int) -> DeviceMesh:
    """The ranks as parameters are divided among them. full: over all. hybrid: over those of a node,
    with a copy per node; the same as full where there is one node, or one rank on each."""
    if kind == "full" or local_size in (1, size):
        return init_device_mesh(device_type, (size,), mesh_dim_names=("shard",))
    if size % local_size:
        raise ConfigError(
            f"parallel.sharding = hybrid needs equal nodes, but {size} processes are not a multiple "
            f"of the {local_size} on this one: start as many on each, or use sharding = full"
        )
    shape = (size // local_size, local_size)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(transformer: nn.Module, mesh: DeviceMesh) -> None:
    """Divides every parameter over `mesh`, and moves it there; a block is gathered when it runs.

    Parameters keep their type, so autocast computes what it computes on one device. They are
    gathered anew for every forward, the root's too: weights are swapped between forwards. Gradients
    are summed, not averaged, because losses are divided by the global number of samples.
    """
    blocks = [
        b for child in transformer.children() if isinstance(child, nn.ModuleList) for b in child
    ]
    for module in [*blocks, transformer]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def whole_state(
    module: nn.Module, *, keep: bool, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The state_dict with whole tensors on the CPU, on the ranks that `keep` it; all ranks call."""
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if wanted(name):
            value = whole(value)
            if keep:
                state[name] = value.cpu()
    return state


def whole(tensor: Any) -> Tensor:
    """A tensor that may be divided, as one; all ranks call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divide_like(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor that every rank has, divided as `like` is; itself where `like` is whole."""
    if not isinstance(like, DTensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(value.to(like.device), mesh, like.placements, src_data_rank=None)
