"""ImageReward.pt in the terms of transformers' BLIP: names, sizes and head."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from reward_services.chassis.weights import WeightsError

HEAD_WIDTH = 64
"""Width of an attention head of the image tower, in BLIP's ViT-B and ViT-L alike."""

_NAMES = (
    (r"^module\.", ""),
    (r"^mlp\.layers\.", "head."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^vision\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
)
# BLIP's contrastive projections take no part in the reward; position ids are 0, 1, 2...
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|text\.embeddings\.position_ids$")


def read_checkpoint(path: Path, device: str) -> dict[str, Tensor]:
    """ImageReward.pt (a flat state dict) as `renamed` gives it, float32 on `device`."""
    tensors = torch.load(path, map_location=device, weights_only=True)
    return {name: tensor.float() for name, tensor in renamed(tensors).items()}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of `model.ImageReward`, less the unused ones."""
    new = {_new_name(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in new.items() if not _UNUSED.match(name)}


def _new_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def vision_config(tensors: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> BlipVisionConfig:
    """The image tower's sizes, as its (renamed) tensors show them: no file of the hub has them.

    Raises WeightsError where a tensor that tells a size is missing.
    """
    try:
        patches = tensors["vision.embeddings.patch_embedding.weight"]
        positions = tensors["vision.embeddings.position_embedding"].shape[1]
        inner = tensors["vision.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(f"the checkpoint of ImageReward lacks {error}") from None
    width, _, patch, _ = patches.shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_count_layers(tensors, "vision.encoder.layers."),
        num_attention_heads=width // head_width,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
    )


def _count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if prefix in name})


def text_config(med_config: Path, image_width: int) -> BlipTextConfig:
    """The text tower of med_config.json, with cross attention to image states of `image_width`.

    The file's own `encoder_width` is that of BLIP-base: the original overwrites it as well.
    Raises WeightsError where the file lacks a size.
    """
    med: dict[str, Any] = json.loads(med_config.read_text(encoding="utf-8"))
    try:
        return BlipTextConfig(
            vocab_size=med["vocab_size"],
            hidden_size=med["hidden_size"],
            encoder_hidden_size=image_width,
            intermediate_size=med["intermediate_size"],
            num_hidden_layers=med["num_hidden_layers"],
            num_attention_heads=med["num_attention_heads"],
            max_position_embeddings=med["max_position_embeddings"],
            hidden_act=med["hidden_act"],
            layer_norm_eps=med["layer_norm_eps"],
            is_decoder=True,  # makes the cross attention; the call decides on a causal mask
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    except KeyError as error:
        raise WeightsError(f"{med_config} lacks {error}") from None
