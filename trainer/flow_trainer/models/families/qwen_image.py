"""Qwen-Image: packed latents, prompts of any length, guidance rescaled to the conditional's norm."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.families.family import Family, guide
from flow_trainer.models.families.packing import pack, unpack
from flow_trainer.models.families.scheduler import scheduler_sigmas
from flow_trainer.recipe import Model

LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
]


def sigmas(scheduler: Any, num_steps: int, tokens: int) -> Tensor:
    return scheduler_sigmas(scheduler, num_steps, tokens, grid_end="1/num_steps")


def encode(pipeline: Any, config: Model, prompts: list[str], device: torch.device) -> Conditioning:
    tokens, mask = pipeline.encode_prompt(
        prompt=prompts, device=device, max_sequence_length=config.max_sequence_length
    )
    return Conditioning(tokens, mask=None if mask is None else mask.bool())


def velocity(
    transformer: Any,
    config: Model,
    x: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    _, _, height, width = x.shape
    v = transformer(
        hidden_states=pack(x),
        timestep=sigma,
        encoder_hidden_states=conditioning.tokens,
        encoder_hidden_states_mask=conditioning.mask,
        img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        return_dict=False,
    )[0].float()
    return unpack(v, height, width)


def guide_direction(v_null: Tensor, v_prompt: Tensor, scale: float) -> Tensor:
    """Guidance that changes the direction of each token alone, not its norm."""
    _, _, height, width = v_null.shape
    v = pack(guide(v_null, v_prompt, scale))
    v = v * (pack(v_prompt).norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
    return unpack(v, height, width)


def unscale(vae: Any, x_0: Tensor) -> Tensor:
    """(B, C, h, w) to the (B, C, 1, h, w) of a video VAE."""
    mean, std = (
        torch.tensor(values, device=x_0.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return x_0[:, :, None] * std + mean


FAMILY = Family(
    pipeline_class=QwenImagePipeline,
    text_encoders=("text_encoder",),
    lora_targets=LORA_TARGETS,
    latent_channels=lambda transformer: transformer.in_channels // 4,
    classifier_free=True,
    load_options=lambda config: {},
    sigmas=sigmas,
    encode=encode,
    velocity=velocity,
    unscale=unscale,
    guide=guide_direction,
)
