"""Named tensors on disk: one safetensors file, or, of a sharded model, a folder of safetensors that
every rank writes its part of (torch.distributed.checkpoint). Both are read into whole and into
sharded tensors, so a run resumes on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flow_trainer.parallel.world import World


def tensors_exist(path: Path) -> bool:
    return _file(path).exists() or path.is_dir()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, world: World) -> None:
    """Writes `path`.safetensors, or the folder `path` where parameters are sharded. All ranks call."""
    if world.lockstep:
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
        state = {name: tensor.detach() for name, tensor in tensors.items()}
        dcp.save(state, storage_writer=writer, process_group=world.status)
    elif world.is_main:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, _file(path))


def read_tensors(
    path: Path, like: Callable[[str], Tensor | None] = lambda name: None
) -> dict[str, Tensor]:
    """What `write_tensors` wrote. A tensor is sharded as `like` (name) is; whole, on the CPU, where
    that is None."""
    if _file(path).exists():
        from flow_trainer.parallel.sharding import divide_like

        return {
            name: divide_like(value, like(name)) for name, value in load_file(_file(path)).items()
        }
    import torch.distributed.checkpoint as dcp

    reader: Any = dcp.HuggingFaceStorageReader(str(path))
    state: dict[str, Any] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        target = like(name)
        if target is None:
            state[name] = torch.empty(saved.size, dtype=saved.properties.dtype)
        else:
            state[name] = torch.empty_like(target)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        # every rank reads what it needs; there is nothing to agree on
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def _file(path: Path) -> Path:
    return path.with_name(f"{path.name}.safetensors")
