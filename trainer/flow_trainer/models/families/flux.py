"""FLUX.1-dev: packed latents, guidance as an input of the distilled transformer, dynamic shift."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.families.family import Family
from flow_trainer.models.families.packing import pack, unpack
from flow_trainer.models.families.scheduler import scheduler_sigmas
from flow_trainer.models.families.sd3 import unscale
from flow_trainer.recipe import Model

# Attention and feed-forward of both streams of the double blocks, attention of the single blocks (the
# published Flow-GRPO recipes for FLUX.1-dev).
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
]


def sigmas(scheduler: Any, num_steps: int, tokens: int) -> Tensor:
    end = "sigma_min" if scheduler.get("use_flow_sigmas") else "1/num_steps"
    return scheduler_sigmas(scheduler, num_steps, tokens, grid_end=end)


def encode(pipeline: Any, config: Model, prompts: list[str], device: torch.device) -> Conditioning:
    tokens, pooled, _ = pipeline.encode_prompt(
        prompt=prompts,
        prompt_2=prompts,
        device=device,
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
    _, _, height, width = x.shape
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = torch.full((len(x),), config.guidance, device=x.device)
    v = transformer(
        hidden_states=pack(x),
        timestep=sigma,
        guidance=guidance,
        pooled_projections=conditioning.pooled,
        encoder_hidden_states=conditioning.tokens,
        txt_ids=torch.zeros(conditioning.tokens.shape[1], 3, device=x.device),
        img_ids=_positions(height // 2, width // 2, x.device),
        return_dict=False,
    )[0].float()
    return unpack(v, height, width)


def _positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows columns, 3) of (0, row, column)."""
    zero = torch.zeros(1, device=device)
    row = torch.arange(rows, dtype=torch.float32, device=device)
    column = torch.arange(columns, dtype=torch.float32, device=device)
    return torch.cartesian_prod(zero, row, column)


FAMILY = Family(
    pipeline_class=FluxPipeline,
    text_encoders=("text_encoder", "text_encoder_2"),
    lora_targets=LORA_TARGETS,
    latent_channels=lambda transformer: transformer.in_channels // 4,
    classifier_free=False,
    load_options=lambda config: {},
    sigmas=sigmas,
    encode=encode,
    velocity=velocity,
    unscale=unscale,
)
