"""Stable Diffusion 3 and 3.5: latents as they are, classifier-free guidance in one batch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.families.family import Family
from flow_trainer.models.families.scheduler import scheduler_sigmas
from flow_trainer.recipe import Model

# Attention projections of both streams (the published Flow-GRPO recipes for SD3.5-M).
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
]


def load_options(config: Model) -> dict[str, Any]:
    # Checkpoints without T5 must be told so, or loading fails for the missing component.
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    return without_t5 if config.max_sequence_length == 0 else {}


def sigmas(scheduler: Any, num_steps: int, tokens: int) -> Tensor:
    return scheduler_sigmas(scheduler, num_steps, tokens, grid_end="sigma_min")


def encode(pipeline: Any, config: Model, prompts: list[str], device: torch.device) -> Conditioning:
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=prompts,
        prompt_2=prompts,
        prompt_3=prompts,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=config.max_sequence_length,
    )
    return Conditioning(tokens, pooled)


def velocity(
    transformer: Any,
    config: Model,
    x: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    v = transformer(
        hidden_states=x,
        timestep=sigma * 1000,
        encoder_hidden_states=conditioning.tokens,
        pooled_projections=conditioning.pooled,
        return_dict=False,
    )[0].float()
    return v


def unscale(vae: Any, x_0: Tensor) -> Tensor:
    return x_0 / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)


FAMILY = Family(
    pipeline_class=StableDiffusion3Pipeline,
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    lora_targets=LORA_TARGETS,
    latent_channels=lambda transformer: transformer.in_channels,
    classifier_free=True,
    load_options=load_options,
    sigmas=sigmas,
    encode=encode,
    velocity=velocity,
    unscale=unscale,
)
