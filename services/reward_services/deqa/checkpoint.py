"""The published shards onto the device, one at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from reward_services.chassis.weights import WeightsError
from reward_services.deqa.abstractor import position_tables
from reward_services.deqa.config import Config
from reward_services.deqa.model import MplugOwl2

# Older checkpoints of the base model store what the rotation computes.
_UNUSED = "rotary_emb.inv_freq"
# The abstractor's position tables, which can be computed as well.
_COMPUTABLE = "_pos_embed"


def load(config: Config, index: Path, device: str, dtype: torch.dtype) -> MplugOwl2:
    """The model of `config` with the tensors that `index` lists, from the shards beside it.

    Beside the weights themselves there is one tensor at a time in memory, where it changes its type.
    Raises WeightsError where names or shapes are not the model's.
    """
    with torch.device("meta"):
        model = MplugOwl2(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shards = _names_by_shard(index)
    absent = _absent(expected, [name for names in shards.values() for name in names])
    tables = position_tables(config.abstractor, config.vision.grid)
    _assign(model, {name: tables[name.rpartition(".")[2]].to(device, dtype) for name in absent})
    for shard, names in shards.items():
        tensors = _read(index.parent / shard, names, device, dtype)
        _check_shapes(expected, tensors, shard)
        _assign(model, tensors)
    return model


def _names_by_shard(index: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        if not name.endswith(_UNUSED):
            names[shard].append(name)
    return names


def _absent(expected: Iterable[str], listed: Iterable[str]) -> set[str]:
    """The position tables that have to be computed."""
    missing = set(expected) - set(listed)
    absent = {name for name in missing if name.endswith(_COMPUTABLE)}
    for fault, names in (("lacks", missing - absent), ("has unknown", set(listed) - set(expected))):
        if names:
            raise WeightsError(f"the checkpoint {fault} {len(names)} tensors, first {min(names)}")
    return absent


def _read(path: Path, names: list[str], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt", device=device) as shard:
            return {name: shard.get_tensor(name).to(dtype) for name in names}
    shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: shard[name].to(device, dtype) for name in names}


def _check_shapes(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], shard: str
) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise WeightsError(
                f"{shard}: {name} is {list(tensor.shape)}, config.json says {list(expected[name])}"
            )


def _assign(model: MplugOwl2, tensors: Mapping[str, Tensor]) -> None:
    model.load_state_dict(tensors, strict=False, assign=True)
