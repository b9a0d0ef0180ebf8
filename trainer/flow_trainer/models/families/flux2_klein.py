"""FLUX.2-klein: packed latents that its VAE's batch norm has standardised, a shift that depends on size
and steps, classifier-free guidance for the base checkpoints and none for the distilled ones."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from flow_trainer.errors import ConfigError
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.families.chat import check_room
from flow_trainer.models.families.family import Family
from flow_trainer.models.families.packing import pack, unpack
from flow_trainer.models.families.scheduler import scheduler_sigmas
from flow_trainer.recipe import Model

# Attention and feed-forward of both streams of the double blocks, and the single blocks' projection
# into both (the published Flow-Factory recipes).
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.linear_in",
    "ff.linear_out",
    "ff_context.linear_in",
    "ff_context.linear_out",
    "attn.to_qkv_mlp_proj",
]


def check(pipeline: Any, config: Model) -> None:
    check_room(pipeline, config, thinking=False)
    if getattr(pipeline, "config", {}).get("is_distilled") and config.guidance > 1:
        raise ConfigError(
            f"model.guidance = {config.guidance:g}: this checkpoint is distilled, and its pipeline "
            "knows no guidance; set it to 1 (evaluate: --own-sampling), or take a base checkpoint"
        )


def sigmas(scheduler: Any, num_steps: int, tokens: int) -> Tensor:
    return scheduler_sigmas(
        scheduler,
        num_steps,
        tokens,
        grid_end="sigma_min" if scheduler.get("use_flow_sigmas") else "1/num_steps",
        mu=compute_empirical_mu(image_seq_len=tokens, num_steps=num_steps),
    )


def encode(pipeline: Any, config: Model, prompts: list[str], device: torch.device) -> Conditioning:
    # the transformer attends to the padding too, so there is no mask
    tokens, _ = pipeline.encode_prompt(
        prompt=prompts, device=device, max_sequence_length=config.max_sequence_length
    )
    return Conditioning(tokens)


def velocity(
    transformer: Any,
    config: Model,
    x: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    _, _, height, width = x.shape
    length = conditioning.tokens.shape[1]
    v = transformer(
        hidden_states=pack(x),
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=conditioning.tokens,
        txt_ids=_positions(1, 1, length, x.device),
        img_ids=_positions(height // 2, width // 2, 1, x.device),
        return_dict=False,
    )[0].float()
    return unpack(v, height, width)


def _positions(rows: int, columns: int, tokens: int, device: torch.device) -> Tensor:
    """(rows columns tokens, 4) of (0, row, column, text token)."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    axes = (torch.arange(size, device=device) for size in (rows, columns, tokens))
    return torch.cartesian_prod(zero, *axes)


def unscale(vae: Any, x_0: Tensor) -> Tensor:
    """The batch norm's statistics are those of 2x2 patches."""
    _, _, height, width = x_0.shape
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return unpack(pack(x_0) * std + vae.bn.running_mean, height, width)


FAMILY = Family(
    pipeline_class=Flux2KleinPipeline,
    text_encoders=("text_encoder",),
    lora_targets=LORA_TARGETS,
    latent_channels=lambda transformer: transformer.in_channels // 4,
    classifier_free=True,
    load_options=lambda config: {},
    sigmas=sigmas,
    encode=encode,
    velocity=velocity,
    unscale=unscale,
    check=check,
)
