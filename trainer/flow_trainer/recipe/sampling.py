"""[prompts], [sampling] and [sampling.window]: what an epoch draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from flow_trainer.recipe.section import Section

SPLITS = ("train", "validation", "heldout")


class Source(Section):
    """Prompts with rewards, and perhaps a teacher, of their own: [prompts.sources.NAME]."""

    train: str
    validation: str | None = None
    heldout: str | None = None
    weight: float = Field(default=1.0, gt=0)
    """Share of an epoch's prompts and of the score that chooses the best checkpoint, over the sum of
    all sources' weights."""
    rewards: list[str] = Field(min_length=1)
    """Names of [rewards.NAME]: what this source's images are scored by."""
    weights: list[float] | None = None
    """One per reward (default: the rewards' own)."""
    teacher: str | None = None
    """For update.objective = opd: an adapter as in model.adapter."""
    teacher_guidance: float | None = Field(default=None, ge=1)
    """Guidance scale of the teacher (default: model.guidance)."""


class Prompts(Section):
    """Prompt files: `.txt`, a prompt per line, or `.jsonl` with `prompt` and `metadata`. Either train
    and what is beside it, or sources."""

    train: str | None = None
    validation: str | None = None
    """Chooses the best checkpoint; never reported as the result."""
    heldout: str | None = None
    """Evaluated before and after; training and selection never see it."""
    teacher: str | None = None
    """For update.objective = opd: an adapter as in model.adapter."""
    teacher_guidance: float | None = Field(default=None, ge=1)
    """Guidance scale of the teacher (default: model.guidance)."""
    sources: dict[str, Source] = Field(default_factory=dict)
    """A mixed run: every group of an epoch comes from one of them."""

    def files(self) -> Iterator[tuple[str, str, str, str]]:
        """(key in the recipe, source, split, path) of every prompt file; source "" without sources."""
        for name, source in self.sources.items() or [("", self)]:
            where = f"prompts.sources.{name}" if name else "prompts"
            for split in SPLITS:
                path = getattr(source, split)
                if path is not None:
                    yield f"{where}.{split}", name, split, path


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
    dynamics: Literal["flow_sde", "cps", "dance_sde", "flash_sde", "ode", "ode2"] = "flow_sde"
    """ode, ode2: no noise after the first, for objectives on the forward process; Euler's steps, or
    the second-order multistep rule dpm2."""
    noise_level: float = Field(default=0.7, gt=0.0)
    """a of Flow-SDE, CPS and Flash-SDE, eta of Dance-SDE."""
    window: Window = Window()
    prompts_per_epoch: int = Field(default=48, ge=1)
    group_size: int = Field(default=24, ge=2)
    candidates: int | None = Field(default=None, ge=3)
    """With update.keep: images per prompt that are drawn as scouts and scored; group_size of them are
    then drawn in full and trained."""
    scout_steps: int | None = Field(default=None, ge=1)
    """T of the scouts (default: num_steps)."""
    same_latent: bool = False
    """All members of a group start from the same initial noise."""
    micro_batch: int = Field(default=8, ge=1)
    """Images per transformer forward, in sampling and in replay."""
    decode_batch: int = Field(default=16, ge=1)
    """Images per VAE decode."""

    @property
    def deterministic(self) -> bool:
        return self.dynamics in ("ode", "ode2")
