"""Parameters, gradients and optimizer state divided over ranks: FSDP2 by transformer block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
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


def shard(transformer: nn.Module, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    """Divides every parameter over `mesh`, and moves it there; a block is gathered when it runs.

    Parameters keep their type, and so do the optimizer's steps. They travel in `dtype`, that of the
    autocast which computes with them, so that a linear layer computes what it computes on one device;
    gradients are added in float32. Parameters are gathered anew for every forward, the root's too:
    weights are swapped between forwards. Gradients are summed, not averaged, because losses are divided
    by the global number of samples.
    """
    travel = MixedPrecisionPolicy()
    if dtype != torch.float32:
        # inputs are cast by autocast, operation by operation
        travel = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    blocks = [
        b for child in transformer.children() if isinstance(child, nn.ModuleList) for b in child
    ]
    for module in [*blocks, transformer]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=travel)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def fill(
    transformer: nn.Module, names: Mapping[str, str], read: Callable[[str, slice | None], Tensor]
) -> None:
    """Gives tensors of a divided transformer their values, and memory where they have none. `names`
    says under which name `read` (name, rows) knows each: a buffer whole (None), of a parameter the rows
    of this rank alone."""
    state: dict[str, Tensor] = {}
    for name, value in transformer.state_dict().items():
        if name not in names:
            continue
        if not isinstance(value, DTensor):
            state[name] = read(names[name], None).to(value)
            continue
        mesh = value.device_mesh
        mine = read(names[name], _own_rows(value)).to(mesh.device_type, value.dtype)
        state[name] = DTensor.from_local(
            mine, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    transformer.load_state_dict(state, strict=False, assign=True)


def _own_rows(tensor: DTensor) -> slice:
    """Which rows of a divided tensor are this rank's: torch.chunk's."""
    mesh = tensor.device_mesh["shard"]
    each = -(-len(tensor) // mesh.size())
    first = min(mesh.get_local_rank() * each, len(tensor))
    return slice(first, min(first + each, len(tensor)))


def expect_backward(transformer: nn.Module, *, last: bool, divided: bool) -> None:
    """What the backwards from now on do with gradients until the `last` one of an update.

    `divided`: each adds them over the ranks that share the parameters, so that a rank holds its part
    alone, and only the last adds them over the copies of other nodes. Else nothing travels before the
    last, and a rank holds all gradients until then, in float32.
    """
    assert isinstance(transformer, FSDPModule)
    transformer.set_is_last_backward(last)
    if divided:
        transformer.set_requires_all_reduce(last)
    else:
        transformer.set_requires_gradient_sync(last)


def forget_forwards(transformer: nn.Module) -> None:
    """Between two forwards of a model that never has a backward: FSDP notes the order of all blocks for
    one, and would for ever."""
    assert isinstance(transformer, FSDPModule)
    transformer.reset_iter_state()


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
