"""[evaluation], [parallel], [checkpoints] and [logging]: how a run goes about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from flow_trainer.recipe.section import Section


class Evaluation(Section):
    every: int = Field(default=10, ge=0)
    """Epochs between validation runs; 0: never."""
    num_steps: int = Field(default=40, ge=1)
    """T of the ODE sampler, with EMA weights."""
    dynamics: Literal["ode", "ode2"] = "ode"
    """Euler's steps, or the second-order multistep rule dpm2."""
    images_per_prompt: int = Field(default=1, ge=1)
    heldout_images_per_prompt: int = Field(default=1, ge=1)
    diversity: bool = False
    """Measures on validation prompts too how much a prompt's images differ, which takes two or more of
    each. All of them are then in the first process's memory at once."""

    @model_validator(mode="after")
    def _comparable(self) -> Evaluation:
        if self.diversity and self.images_per_prompt < 2:
            raise ValueError(
                "diversity = true compares a prompt's images: images_per_prompt = 2 or more"
            )
        return self


class Parallel(Section):
    sharding: Literal["auto", "none", "full", "hybrid"] = "auto"
    """How several processes hold the transformer. none: each all of it. full: each a part (FSDP2).
    hybrid: parts within a node, a copy per node. auto: none for LoRA, hybrid for full fine-tuning."""


class Checkpoints(Section):
    every: int = Field(default=10, ge=1)
    """Epochs."""
    keep: int = Field(default=2, ge=1)


class Watch(Section):
    """What an epoch's samples look like, against the band of the run's first epochs."""

    band_epochs: int = Field(default=10, ge=2)
    """Epochs that make the band; alarms can ring from three epochs later on."""
    monitor_images: int = Field(default=64, ge=1)
    """About how many of an epoch's images each reward with monitor = true scores."""
    embeddings: str | None = None
    """A reward that is built on CLIP (pickscore, clipscore, hpsv2, aesthetic): whole groups, about
    monitor_images samples, are sent to it once more, and diversity is that of its image embeddings too."""
    on_alarm: Literal["continue", "stop"] = "continue"
    """stop: save and leave; --resume goes on, and the alarm that rang does not ring again."""


class Logging(Section):
    tensorboard: bool = True
    wandb_project: str | None = None
    image_every: int = Field(default=10, ge=0)
    """Epochs between pictures, the grid of the epoch's samples and the fixed prompts; 0: none."""
    fixed_prompts: int = Field(default=8, ge=0)
    """How many validation prompts (without them, held-out or training prompts) are drawn again and again
    from the same noise, so that a person sees the training work: first untrained, then with every sample
    grid and at the end, one image each with the EMA weights and the evaluation's sampler. They are not
    scored."""
