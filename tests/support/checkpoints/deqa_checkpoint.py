"""DeQA-Score's published files at a tiny size, by the rules of golden/deqa_model_tiny.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "deqa_model_tiny.json").read_text()
)
SHAPES: dict[str, list[int]] = {p["name"]: p["shape"] for p in GOLDEN["parameters"]}
_SMALL = ("embed_tokens.weight", "cls_token", "position_embedding", "query_embeds", "vit_eos")


def rule_tensors(shapes: Mapping[str, list[int]] = SHAPES) -> dict[str, Tensor]:
    """float32 parameters of the published names; the position tables are not among them."""
    return {
        name: torch.from_numpy(_values(name, shape, k))
        for k, (name, shape) in enumerate(sorted(shapes.items()))
    }


def _values(name: str, shape: list[int], k: int) -> np.ndarray:
    j = np.arange(np.prod(shape), dtype=np.float64)
    u = np.sin(12.9898 * (j + 1) + 78.233 * (k + 1)) * 43758.5453
    v = 2 * (u - np.floor(u)) - 1
    if name.endswith("bias"):
        v = 0.1 * v
    elif "norm" in name or name.endswith("ffn_ln.weight"):
        v = 1 + 0.2 * v
    elif name.endswith("patch_embed.weight"):
        v = 0.002 * v
    elif name.endswith(_SMALL):
        v = 0.02 * v
    else:
        v = 2 * v / np.sqrt(j.size / shape[0])
    return v.astype(np.float32).reshape(shape)


def rule_image(k: int) -> np.ndarray:
    """(56, 56, 3) uint8, the golden file's image `k`."""
    y, x, c = np.ogrid[:56, :56, :3]
    tiles = 37 * (x // 7) + 59 * (y // 7) + 83 * c + 41 * k
    tiles = tiles + 29 * (x // 14) * (y // 14) + k * k * (x // 28) + 3 * ((x * y) % 17)
    return (tiles % 256).astype(np.uint8)


def llama_shapes() -> dict[str, list[int]]:
    """The golden shapes with LLaMA-2's 32000 tokens, which the real prompt needs."""
    rows = {320: 32000}
    return {name: [rows.get(size) or size for size in shape] for name, shape in SHAPES.items()}


def write_deqa(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    form: str = "safetensors",
    **config: Any,
) -> Path:
    """config.json, two shards and their index. `config` changes fields of config.json."""
    if tensors is None:
        tensors = rule_tensors(llama_shapes())
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        shard = {name: tensors[name] for name in half}
        if form == "safetensors":
            file = f"model-0000{number}-of-00002.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
        else:
            file = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(half, file)
    index = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    (folder / f"{index}.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    described = GOLDEN["config"] | {"vocab_size": 32000, "model_type": "mplug_owl2"} | config
    (folder / "config.json").write_text(json.dumps(described))
    return folder
