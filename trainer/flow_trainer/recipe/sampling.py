"""[prompts], [sampling] and [sampling.window]: what an epoch draws."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flow_trainer.recipe.section import Section


class Prompts(Section):
    """Prompt files: `.txt`, a prompt per line, or `.jsonl` with `prompt` and `metadata`."""

    train: str
    validation: str | None = None
    """Chooses the best checkpoint; never reported as the result."""
    heldout: str | None = None
    """Evaluated before and after; training and selection never see it."""


class Window(Section):
    """Which steps are stochastic (and trained); the rest are Euler steps. One window per epoch,
    shared by every sample."""

    kind: Literal["all", "first", "random", "progressive"] = "all"
    """all: every step but the last (the paper). first: steps lo..lo+size-1. random: `size`
    contiguous steps inside [lo, hi), drawn per epoch (Flow-GRPO-Fast). progressive: `size` steps
    that move right by `stride` every `every` epochs (MixGRPO)."""
    size: int = Field(default=2, ge=1)
    lo: int = Field(default=0, ge=0)
    hi: int | None = None
    every: int = Field(default=25, ge=1)
    stride: int = Field(default=1, ge=1)


class Sampling(Section):
    num_steps: int = Field(default=10, ge=2)
    """T while training; evaluation has its own."""
    dynamics: Literal["flow_sde", "cps", "dance_sde", "ode"] = "flow_sde"
    """ode: no noise after the first, for objectives on the forward process."""
    noise_level: float = Field(default=0.7, gt=0.0)
    """a of Flow-SDE and CPS, eta of Dance-SDE."""
    window: Window = Window()
    prompts_per_epoch: int = Field(default=48, ge=1)
    group_size: int = Field(default=24, ge=2)
    same_latent: bool = False
    """All members of a group start from the same initial noise."""
    micro_batch: int = Field(default=8, ge=1)
    """Images per transformer forward, in sampling and in replay."""
    decode_batch: int = Field(default=16, ge=1)
    """Images per VAE decode."""
