"""A policy of a full-size model whose weights are fake tensors."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from flow_trainer.doctor.fake_device import Ledger
from flow_trainer.errors import ConfigError
from flow_trainer.models import diffusers_policy, tuning
from flow_trainer.models.architectures import transformer_config
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families import FAMILIES
from flow_trainer.models.memory import text_tokens
from flow_trainer.recipe import Recipe

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.06,
    "scaling_factor": 1.5,
}
"""Of SD3, FLUX.1 and Z-Image; the last two do not matter here."""


def fake_policy(recipe: Recipe, ledger: Ledger, blocks: int | None) -> DiffusersPolicy:
    """The recipe's policy with a pipeline of fake weights, its prompts' embeddings made up."""
    import diffusers

    m = recipe.model
    found = transformer_config(m.path)
    if found is None or m.family == "qwen_image":
        raise ConfigError(
            f"no fake run for model.path = {m.path!r}: its parts are not on record; those of "
            "SD3.5, FLUX.1-dev, FLUX.2-klein and Z-Image are"
        )
    name, config = found
    if blocks is not None:
        lists = ("num_layers", "num_single_layers", "n_layers")
        config = {**config, **{key: blocks for key in lists if key in config}}
    family = importlib.import_module(FAMILIES[m.family]).FAMILY
    dtype = getattr(torch, m.dtype)
    shift: dict[str, Any] = {"shift": 3.0}
    if m.family in ("flux", "flux2_klein"):
        shift |= {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    pipeline = SimpleNamespace(
        transformer=_fake(getattr(diffusers, name), config, dtype, ledger.device),
        vae=_fake(*_vae(m.family), torch.float32, ledger.device),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae_scale_factor=8,
        to=lambda device: None,
        **dict.fromkeys(family.text_encoders, torch.nn.Identity()),
    )
    width = family.text_width(pipeline.transformer.config)
    pooled = pipeline.transformer.config.get("pooled_projection_dim")

    def encode(pipeline: Any, model: Any, prompts: list[str], device: torch.device) -> Conditioning:
        rows, place = len(prompts), {"dtype": dtype, "device": device}
        return Conditioning(
            torch.zeros(rows, text_tokens(model), width, **place),
            None if pooled is None else torch.zeros(rows, pooled, **place),
        )

    with (
        patch.object(diffusers_policy, "_dtype", lambda model, _: getattr(torch, model.dtype)),
        patch.object(tuning, "load_adapter", _fake_adapter),
        torch.device(ledger.device),  # where LoRA's weights are made
    ):
        return DiffusersPolicy(
            dataclasses.replace(family, encode=encode),
            m,
            ledger.device,
            with_reference=recipe.needs_reference,
            pipeline=pipeline,
            teachers={name: teacher.adapter for name, teacher in recipe.teachers.items()},
        )


def _vae(family: str) -> tuple[Any, dict[str, Any]]:
    import diffusers

    if family == "flux2_klein":
        return diffusers.AutoencoderKLFlux2, {}  # its defaults are the published configuration
    return diffusers.AutoencoderKL, VAE


def _fake_adapter(transformer: Any, source: str, name: str, key: str) -> None:
    """A teacher's, in place of the one at `source`: of the student's shape."""
    student = next(iter(transformer.peft_config.values()))
    transformer.add_adapter(copy.deepcopy(student), adapter_name=name)


def _fake(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    with torch.device("meta"):
        module = kind.from_config(config)
    module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(dtype)
    return module
