"""Published transformer configurations, to count parameters without any weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Z_IMAGE: dict[str, Any] = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
KLEIN_4B: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "guidance_embeds": False,
}
KLEIN_9B = {
    **KLEIN_4B,
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "stabilityai/stable-diffusion-3.5-medium": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "out_channels": 16,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 38,
            "attention_head_dim": 64,
            "num_attention_heads": 38,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 2432,
            "pooled_projection_dim": 2048,
            "out_channels": 16,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "black-forest-labs/FLUX.1-dev": (
        "FluxTransformer2DModel",
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
    ),
    "Tongyi-MAI/Z-Image": ("ZImageTransformer2DModel", Z_IMAGE),
    "Tongyi-MAI/Z-Image-Turbo": ("ZImageTransformer2DModel", Z_IMAGE),
    "black-forest-labs/FLUX.2-klein-base-4B": ("Flux2Transformer2DModel", KLEIN_4B),
    "black-forest-labs/FLUX.2-klein-4B": ("Flux2Transformer2DModel", KLEIN_4B),
    "black-forest-labs/FLUX.2-klein-base-9B": ("Flux2Transformer2DModel", KLEIN_9B),
    "black-forest-labs/FLUX.2-klein-9B": ("Flux2Transformer2DModel", KLEIN_9B),
    "Qwen/Qwen-Image": (
        "QwenImageTransformer2DModel",
        {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 60,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
        },
    ),
}
"""By hub repository: the transformer's class in diffusers, and its config."""


@dataclass(frozen=True, slots=True)
class Architecture:
    parameters: int
    """Of the transformer, without adapter."""
    lora_parameters: int
    buffers: int
    """Elements that are neither: position embeddings."""
    width: int
    """Of a token inside the transformer."""
    blocks: int
    second_attentions: int
    """Blocks in which image tokens also attend among themselves, as in half of SD3.5-M's."""
    lora_modules: tuple[str, ...]
    """Names of the layers that get an adapter."""
    text_width: int
    """Channels of a text token before the transformer."""


@cache
def inspect(path: str, family: str, rank: int) -> Architecture | None:
    """Builds the transformer of a hub repository or pipeline folder on the meta device, with a LoRA
    adapter of this rank on the family's targets; None when neither its config nor name is known."""
    import importlib

    import diffusers
    import torch
    from peft import LoraConfig

    from flow_trainer.models.families import FAMILIES

    found = transformer_config(path)
    if found is None:
        return None
    name, values = found
    described = importlib.import_module(FAMILIES[family]).FAMILY
    with torch.device("meta"):
        transformer = getattr(diffusers, name).from_config(values)
        plain = sum(p.numel() for p in transformer.parameters())
        buffers = sum(b.numel() for b in transformer.buffers())
        transformer.add_adapter(LoraConfig(r=rank, target_modules=described.lora_targets))
    adapted = [n for n, _ in transformer.named_parameters() if n.endswith("lora_A.default.weight")]
    config, kinds = transformer.config, transformer._no_split_modules
    return Architecture(
        parameters=plain,
        lora_parameters=sum(p.numel() for n, p in transformer.named_parameters() if ".lora_" in n),
        buffers=buffers,
        width=config.get("dim") or config.num_attention_heads * config.attention_head_dim,
        blocks=sum(type(module).__name__ in kinds for module in transformer.modules()),
        second_attentions=len(config.get("dual_attention_layers") or ()),
        lora_modules=tuple(n.removesuffix(".lora_A.default.weight") for n in adapted),
        text_width=described.text_width(config),
    )


def transformer_config(path: str) -> tuple[str, dict[str, Any]] | None:
    """Class in diffusers and config of a pipeline folder's or hub repository's transformer; None when
    it is neither there nor on record."""
    file = Path(path) / "transformer" / "config.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        return values["_class_name"], values
    return ARCHITECTURES.get(path)
