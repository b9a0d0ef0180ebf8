"""An optimizer's state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flow_trainer.errors import ConfigError

TABLES = ("qmap1", "qmap2")
"""Entries of bitsandbytes' state that all parameters share: the values that 8 bits stand for."""


def state_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Moments and step counters as `parameter.entry`."""
    return {
        f"{name}.{key}": torch.as_tensor(value).contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if key not in TABLES
    }


def load_state_tensors(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
) -> None:
    """Restores what `state_tensors` gave. Raises ConfigError when it is another optimizer's."""
    entries: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        name, _, field = key.rpartition(".")
        entries.setdefault(name, {})[field] = value
    eight_bit = not isinstance(optimizer, torch.optim.AdamW)
    for name, values in entries.items():
        if ("state1" in values) != eight_bit:
            raise ConfigError(
                "the checkpoint was made with another update.optimizer: resume with that one"
            )
        parameter = parameters[name]
        moved = {key: value.to(parameter.device) for key, value in values.items() if key != "step"}
        # torch keeps the counter on the CPU, bitsandbytes a plain number
        moved["step"] = int(values["step"]) if eight_bit else values["step"]
        if eight_bit and moved["state1"].dtype == torch.uint8:
            moved |= _tables(optimizer, parameter.device)
        optimizer.state[parameter] = moved


def _tables(optimizer: Any, device: torch.device) -> dict[str, Tensor]:
    if not optimizer.name2qmap:
        optimizer.fill_qmap()
    names = zip(TABLES, ("dynamic", "udynamic"), strict=True)
    return {key: optimizer.name2qmap[table].to(device) for key, table in names}
