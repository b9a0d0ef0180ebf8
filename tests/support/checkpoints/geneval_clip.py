"""A CLIP checkpoint with random weights in open_clip's published layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from open_clip import CLIP
from safetensors.torch import save_file

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 7},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_open_clip(folder: Path, config: dict | None = None, *, seed: int = 0) -> Path:
    """Writes open_clip_config.json and open_clip_model.safetensors; returns the folder.

    Weights are larger than at an untrained start, so that features depend on the pixels.
    """
    config = config or TINY
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**config)
        weights = {
            name: tensor + torch.randn_like(tensor) * 0.2 if tensor.ndim else tensor
            for name, tensor in model.state_dict().items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(text)
    return folder
