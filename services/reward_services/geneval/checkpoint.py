"""Mask2Former's weights as mmdet publishes them: found, read without running code, and renamed."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reward_services.chassis.weights import WeightsError
from reward_services.geneval.openmmlab import Config

SHIPPED_CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
_WEIGHTS = ("*.pth", "*.safetensors")
_DIGITS = 12

_RENAMED = (
    (r"(pixel_decoder\.encoder\.layers\.\d+\.)attentions\.0\.", r"\1self_attn."),
    (r"(transformer_decoder\.layers\.\d+\.)attentions\.0\.", r"\1cross_attn."),
    (r"(transformer_decoder\.layers\.\d+\.)attentions\.1\.", r"\1self_attn."),
    (r"((?:encoder|transformer_decoder)\.layers\.\d+\.)ffns\.0\.", r"\1ffn."),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    weights: Path
    config: Path | None
    """None: the published file alone, whose configuration is the one that mmdet ships."""

    def digest(self, config: Config) -> str:
        """`sha256:` and 12 hex digits, of the weights and of what was made of them."""
        whole = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
        with self.weights.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
        return f"sha256:{whole.hexdigest()[:_DIGITS]}"


def find_checkpoint(path: Path) -> Checkpoint:
    """`path`: a file with weights, or a folder with one such file and at most one configuration.

    Raises WeightsError.
    """
    if path.is_file():
        return Checkpoint(path, None)
    if not path.is_dir():
        raise WeightsError(f"there is no Mask2Former checkpoint at {path}")
    weights = [file for pattern in _WEIGHTS for file in sorted(path.glob(pattern))]
    configs = sorted(path.glob("*.py"))
    if len(weights) != 1 or len(configs) > 1:
        names = ", ".join(file.name for file in weights + configs) or "nothing of the kind"
        raise WeightsError(
            f"{path} should hold one .pth or .safetensors and at most one .py (the configuration), "
            f"and holds {names}"
        )
    return Checkpoint(weights[0], configs[0] if configs else None)


def read_config(path: Path | None) -> Config:
    """mmdet's configuration for Mask2Former: Python, which runs when it is read.

    None gives the one that mmdet's wheel carries for GenEval's detector.
    """
    if path is None:
        import mmdet

        path = Path(mmdet.__file__).parent / ".mim" / "configs" / SHIPPED_CONFIG
    config = Config.fromfile(path)
    config.model.backbone.init_cfg = None  # else building it downloads ImageNet weights
    return config


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Parameters by the names of mmdet 3.x. Raises WeightsError."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return renamed(load_file(path))
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path} does not load without running code in it, or is damaged: use the published "
            "file, or save its state_dict alone as .safetensors"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise WeightsError(f"{path} holds no state_dict")
    return renamed(weights)


def renamed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of mmdet 2.x in those of 3.x, which numbers no attention and no FFN any more.

    A decoder layer of Mask2Former attends to the image first and to its queries second
    (`operation_order` of the 2.x configuration), so its attention 0 is the cross-attention. Every
    other name and every shape is the same in both; names of 3.x stay as they are.
    """
    return {_new_name(name): tensor for name, tensor in weights.items()}


def _new_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_into(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Every parameter of the model from `weights`, none left over. Raises WeightsError."""
    expected = model.state_dict()
    different = [
        *(f"no {name}" for name in expected.keys() - weights.keys()),
        *(f"{name} beyond the model" for name in weights.keys() - expected.keys()),
        *(
            f"{name} of shape {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if different:
        raise WeightsError(
            f"{source} does not fit the configuration ({len(different)} differences): "
            + "; ".join(sorted(different)[:3])
        )
    model.load_state_dict(weights)


def _numpy_globals() -> list[Any]:
    """Numbers and arrays of numpy, which a checkpoint's `meta` may hold, under numpy 1's names too."""
    made_by: list[Any] = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
    functions = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in made_by
        for core in ("core", "_core")
    ]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")]
    return [*functions, np.ndarray, np.dtype, *kinds]
