"""The schedule that a checkpoint's own scheduler gives in its pipeline: its flags are followed, or
refused by name, because another schedule is another model."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from flow_trainer.algorithm.schedule import (
    NUM_TRAIN_TIMESTEPS,
    shift_mu,
    shifted_sigmas,
    static_shift_sigmas,
)
from flow_trainer.errors import ConfigError

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
REFUSED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
"""Flags that change the grid or the step in a way the dynamics do not have."""


_SHIFTS = ("shift", "shift_terminal")
_DYNAMIC = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")


def check_scheduler(scheduler: Any) -> None:
    """Raises ConfigError for a scheduler whose schedule would not be the pipeline's."""
    name, config = type(scheduler).__name__, scheduler.config
    if name != SCHEDULER:
        raise ConfigError(
            f"model.path has a {name}, whose schedule is not known here: put a {SCHEDULER} into its "
            "scheduler/scheduler_config.json"
        )
    if config.num_train_timesteps != NUM_TRAIN_TIMESTEPS:
        raise ConfigError(
            f"model.path's scheduler has num_train_timesteps = {config.num_train_timesteps}: only "
            f"{NUM_TRAIN_TIMESTEPS} is supported, by which the transformers scale their time"
        )
    for flag in REFUSED:
        if config.get(flag):
            raise ConfigError(
                f"model.path's scheduler has {flag} = true, which is not supported: set it to false "
                "in its scheduler/scheduler_config.json"
            )


def scheduler_sigmas(
    config: Any, num_steps: int, tokens: int, *, grid_end: str, mu: float | None = None
) -> Tensor:
    """(num_steps + 1,) float32 for `tokens` image tokens.

    Every shift is one function of one factor: the static shift, e^mu (time_shift_type exponential) or
    mu (linear). `mu`: that of the pipeline, where it is not linear in the tokens. `grid_end`, where the
    unshifted grid ends: "sigma_min" (the scheduler's own, SD3) or "1/num_steps" (what the other
    pipelines pass).

    Raises ConfigError for flags that give no schedule: one that falls from 1 to 0.
    """
    shift, terminal = config.shift, config.shift_terminal
    if config.use_dynamic_shifting:
        mu = linear_mu(config, tokens) if mu is None else mu
        shift = mu if config.time_shift_type == "linear" else math.exp(mu)
    if grid_end == "1/num_steps":
        sigmas = shifted_sigmas(num_steps, shift, 1 / num_steps, terminal)
    elif config.use_dynamic_shifting:
        sigmas = shifted_sigmas(num_steps, shift, 1 / NUM_TRAIN_TIMESTEPS, terminal)
    else:
        sigmas = static_shift_sigmas(num_steps, shift, terminal)
    falls = sigmas[0] <= 1 and bool((sigmas.diff() < 0).all())  # not when one is NaN
    if not (falls and 0 < shift < math.inf):
        flags = [*_SHIFTS, *(_DYNAMIC if config.use_dynamic_shifting else ())]
        given = ", ".join(f"{flag} = {config.get(flag)}" for flag in flags)
        raise ConfigError(
            f"model.path's scheduler has {given}: that is no schedule, whose noise falls from 1 to 0; "
            "correct its scheduler/scheduler_config.json"
        )
    return sigmas


def linear_mu(config: Any, tokens: int) -> float:
    """`shift_mu` as the scheduler config of a checkpoint says."""
    return shift_mu(
        tokens,
        (config.base_image_seq_len, config.max_image_seq_len),
        (config.base_shift, config.max_shift),
    )
