"""config.json of DeQA-Score: field names and defaults are those of mPLUG-Owl2's classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from reward_services.chassis.weights import WeightsError


@dataclass(frozen=True, slots=True)
class VisionConfig:
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class AbstractorConfig:
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_learnable_queries: int = 64
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Config:
    vision: VisionConfig = VisionConfig()
    abstractor: AbstractorConfig = AbstractorConfig()
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    level_ids: tuple[int, ...] = ()
    """Token ids of the five levels as the training wrote them; empty where it did not."""


def read_config(path: Path) -> Config:
    """Raises WeightsError for a model that this implementation does not compute."""
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    visual = raw.get("visual_config") or {}
    vision = visual.get("visual_model") or {}
    abstractor = visual.get("visual_abstractor") or {}
    config = _known(
        Config,
        raw
        | {
            "vision": _known(VisionConfig, vision),
            "abstractor": _known(AbstractorConfig, abstractor),
            "level_ids": tuple(raw.get("level_ids") or ()),
        },
    )
    _require("hidden_act", raw, "silu")
    _require("rope_scaling", raw, None)
    _require("attention_bias", raw, False)
    _require("tie_word_embeddings", raw, False)
    _require("num_key_value_heads", raw, config.num_attention_heads)
    _require("hidden_act", vision, "quick_gelu")
    _require("grid_size", abstractor, config.vision.grid)
    _require("encoder_hidden_size", abstractor, config.vision.hidden_size)
    _require("hidden_size", abstractor, config.vision.hidden_size)
    return config


_Part = TypeVar("_Part")


def _known(part: type[_Part], raw: Mapping[str, Any]) -> _Part:
    """The fields that `part` has; an absent one, or null, is its default."""
    names = (field.name for field in fields(part))  # pyright: ignore[reportArgumentType]
    return part(**{name: raw[name] for name in names if raw.get(name) is not None})


def _require(name: str, raw: Mapping[str, Any], value: object) -> None:
    """The field is absent, null or `value`."""
    found = raw.get(name)
    if found is not None and found != value:
        raise WeightsError(f"config.json has {name} {found}: only {value} is supported")
