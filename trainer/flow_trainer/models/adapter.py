"""A LoRA adapter from disk or the hub into a transformer: all of it fits, or none of it is used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flow_trainer.errors import ConfigError, NonFiniteError

PEFT_CONFIG = "adapter_config.json"
PEFT_FILE = "adapter_model.safetensors"
OWN_FILE = "pytorch_lora_weights.safetensors"
PEFT_PREFIX, OWN_PREFIX = "base_model.model.", "transformer."
_NAMED = re.compile(r"(\.lora_\w+)\.\w+(\.weight|\.bias)$")
"""A parameter that carries its adapter's name, as x.lora_A.default.weight."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's configuration, as JSON, in the file's metadata."""


def load_adapter(
    transformer: Any, source: str, name: str = "default", key: str = "model.adapter"
) -> None:
    """Adds the adapter at `source`, which the recipe names as `key`, under `name`: a folder or a hub
    repository, in peft's layout (as published by Flow-GRPO) or in diffusers' (as `Tuning.save` writes
    it). Raises ConfigError when its names, its
    shapes or its configuration do not fit the transformer, NonFiniteError for weights with NaN or Inf.
    """
    try:
        folder = _folder(source)
        if (folder / PEFT_CONFIG).exists():
            file, prefix = folder / PEFT_FILE, PEFT_PREFIX
            config: Any = LoraConfig.from_pretrained(str(folder))
            state, _ = _read(file)
        elif (folder / OWN_FILE).exists():
            file, prefix = folder / OWN_FILE, OWN_PREFIX
            state, config = _read(file)
        else:
            raise ValueError(f"it holds neither {PEFT_CONFIG} nor {OWN_FILE}")
        state = _without_prefix(state, prefix)
        _add(transformer, config, state, name, key)
    except NonFiniteError:
        raise
    # what peft and diffusers raise on files that they cannot use
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ConfigError(f"{key} = {source!r} cannot be used with this model: {reason}") from error


def _add(
    transformer: Any, config: LoraConfig | None, state: dict[str, Tensor], adapter: str, key: str
) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{key}: {name} has values that are not finite")
    modules = dict(transformer.named_modules())
    strange = [name for name in state if name.partition(".lora_")[0] not in modules]
    if strange:
        raise ValueError(f"{len(strange)} names differ, e.g. {strange[0]} is unknown to the model")
    config = config or _config_of(state)
    config.lora_dropout = 0.0
    transformer.add_adapter(config, adapter_name=adapter)
    set_peft_model_state_dict(transformer, dict(state), adapter_name=adapter)
    loaded = get_peft_model_state_dict(transformer, adapter_name=adapter)
    wrong = sorted(loaded.keys() ^ state.keys())
    if wrong:
        kind = "missing" if wrong[0] in loaded else "not in its configuration"
        raise ValueError(f"{len(wrong)} names differ, e.g. {wrong[0]} is {kind}")


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    strange = [name for name in state if not name.startswith(prefix)]
    if strange or not state:
        example = f", e.g. {strange[0]}" if strange else ""
        raise ValueError(
            f"{len(strange)} of its {len(state)} tensors do not begin with {prefix!r}{example}: "
            "it is another model's or another layout's; save it with peft or diffusers"
        )
    named = {_NAMED.sub(r"\1\2", n.removeprefix(prefix)): value for n, value in state.items()}
    if len(named) != len(state):
        raise ValueError("it holds several adapters: save one of them")
    return named


def _read(file: Path) -> tuple[dict[str, Tensor], LoraConfig | None]:
    """Tensors, and the configuration where diffusers saved one beside them."""
    if not file.exists():
        pickle = next(
            (f" ({p.name} is a pickle: save it again)" for p in file.parent.glob("*.bin")), ""
        )
        raise ValueError(f"it has no {file.name}{pickle}")
    with safe_open(file, framework="pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    if METADATA not in metadata:
        return state, None
    values = {
        key.removeprefix(OWN_PREFIX): value
        for key, value in json.loads(metadata[METADATA]).items()
        if key.startswith(OWN_PREFIX)
    }
    return state, _config(values) if values else None


def _config(values: dict[str, Any]) -> LoraConfig:
    known = LoraConfig.__dataclass_fields__
    config: Any = LoraConfig(**{key: value for key, value in values.items() if key in known})
    if isinstance(config.target_modules, list):
        config.target_modules = set(config.target_modules)
    return config


def _config_of(state: dict[str, Tensor]) -> LoraConfig:
    """Of an adapter that was saved without one: ranks from the shapes, and alpha = rank, as
    diffusers takes it to be."""
    ranks = {
        name.partition(".lora_")[0]: v.shape[1] for name, v in state.items() if "lora_B" in name
    }
    if not ranks:
        raise ValueError("it has no lora_B weights")
    return LoraConfig(
        r=next(iter(ranks.values())),
        lora_alpha=next(iter(ranks.values())),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=list(ranks),
    )


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"it is neither a folder nor a hub repository: {error}") from error


def as_trained(transformer: Any) -> None:
    """Makes the adapter's parameters float32 and the only ones that train."""
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
