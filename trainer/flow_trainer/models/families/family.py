"""What a family says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.recipe import Model


def guide(v_null: Tensor, v_prompt: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, from the velocities of the empty prompt and of the prompt (B, C, h, w)."""
    return v_null + scale * (v_prompt - v_null)


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between families. `pipeline` below is an instance of `pipeline_class`."""

    pipeline_class: Any
    text_encoders: tuple[str, ...]
    """Components that are freed once all prompts are encoded."""
    lora_targets: list[str]
    latent_channels: Callable[[Any], int]
    """Of the transformer's config."""
    classifier_free: bool
    """model.guidance > 1 needs a second forward with the empty prompt."""
    load_options: Callable[[Model], dict[str, Any]]
    sigmas: Callable[[Any, int, int], Tensor]
    """(scheduler config, num_steps, image tokens) to the schedule."""
    encode: Callable[[Any, Model, list[str], torch.device], Conditioning]
    """(pipeline, config, prompts, device) to their conditioning."""
    velocity: Callable[[Any, Model, Tensor, Tensor, Conditioning], Tensor]
    """(transformer, config, x, sigma, conditioning) to v, float32, without classifier-free guidance."""
    unscale: Callable[[Any, Tensor], Tensor]
    """(VAE, x_0 float32) to what the VAE decodes."""
    guide: Callable[[Tensor, Tensor, float], Tensor] = guide
    text_width: Callable[[Any], int] = lambda transformer: transformer.joint_attention_dim
    """Channels of a text token before the transformer, by its config."""
    text_multiple: int = 1
    """The transformer fills texts up to a multiple of so many tokens."""
    check: Callable[[Any, Model], None] = lambda pipeline, config: None
    """(pipeline, config): raises ConfigError for what the two cannot do together."""
