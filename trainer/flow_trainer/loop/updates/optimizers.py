"""The optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Update


def make_optimizer(config: Update, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; with update.optimizer = adamw8bit its moments in 8 bits, a quarter of the memory, for
    parameters of 4096 elements or more. Raises ConfigError when bitsandbytes is not installed."""
    settings: Any = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters.values(), **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "update.optimizer = adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw"
        ) from error
    return AdamW8bit(parameters.values(), **settings)
