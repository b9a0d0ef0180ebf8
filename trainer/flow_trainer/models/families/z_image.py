"""Z-Image and Z-Image-Turbo: one stream of tokens, prompts of any length, a transformer that takes
1 - sigma and predicts -v."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from flow_trainer.errors import ConfigError
from flow_trainer.models.conditioning import Conditioning, join
from flow_trainer.models.families.chat import check_room
from flow_trainer.models.families.family import Family
from flow_trainer.models.families.scheduler import scheduler_sigmas
from flow_trainer.models.families.sd3 import unscale
from flow_trainer.recipe import Model

# Attention and feed-forward of every block, the refiners' too (the published Flow-Factory recipes).
LORA_TARGETS = [
    "attention.to_q",
    "attention.to_k",
    "attention.to_v",
    "attention.to_out.0",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
]
TEXT_MULTIPLE = 32
"""The transformer fills texts and images up to a multiple of so many tokens."""


def check(pipeline: Any, config: Model) -> None:
    """Positions are tables: text tokens and the image share the first axis, rows and columns have one
    each."""
    check_room(pipeline, config, thinking=True)
    text, *sides = pipeline.transformer.config.axes_lens
    longest = config.max_sequence_length + -config.max_sequence_length % TEXT_MULTIPLE
    if longest + 1 >= text:
        most = (text - 2) // TEXT_MULTIPLE * TEXT_MULTIPLE
        raise ConfigError(
            f"model.max_sequence_length = {config.max_sequence_length}: this checkpoint has positions for "
            f"at most {most} text tokens"
        )
    token = 2 * pipeline.vae_scale_factor
    if config.height > sides[0] * token or config.width > sides[1] * token:
        raise ConfigError(
            f"model.height x model.width = {config.height}x{config.width}: this checkpoint has "
            f"positions for at most {sides[0] * token}x{sides[1] * token} pixels"
        )


def sigmas(scheduler: Any, num_steps: int, tokens: int) -> Tensor:
    return scheduler_sigmas(scheduler, num_steps, tokens, grid_end="1/num_steps")


def encode(pipeline: Any, config: Model, prompts: list[str], device: torch.device) -> Conditioning:
    rows, _ = pipeline.encode_prompt(
        prompt=list(prompts),  # it writes its template into the list
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=config.max_sequence_length,
    )
    return join([Conditioning(row[None]) for row in rows])


def velocity(
    transformer: Any,
    config: Model,
    x: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    v = transformer(
        list(x.unsqueeze(2).unbind()),
        1 - sigma,
        _texts(conditioning),
        return_dict=False,
    )[0]
    v = -torch.stack(v).squeeze(2).float()
    return v


def _texts(conditioning: Conditioning) -> list[Tensor]:
    """A tensor (L, D) for each row, without its padding."""
    if conditioning.mask is None:
        return list(conditioning.tokens.unbind())
    lengths = conditioning.mask.sum(1).tolist()  # waits for the device, once a forward
    return [row[:length] for row, length in zip(conditioning.tokens, lengths, strict=True)]


FAMILY = Family(
    pipeline_class=ZImagePipeline,
    text_encoders=("text_encoder",),
    lora_targets=LORA_TARGETS,
    latent_channels=lambda transformer: transformer.in_channels,
    classifier_free=True,
    load_options=lambda config: {},
    sigmas=sigmas,
    encode=encode,
    velocity=velocity,
    unscale=unscale,
    text_width=lambda transformer: transformer.cap_feat_dim,
    text_multiple=TEXT_MULTIPLE,
    check=check,
)
