"""ImageReward's published files at a tiny size, by the rules of golden/imagereward_tiny.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "imagereward_tiny.json").read_text()
)
_WORDS = ["a", "cat", "dog", "red", "sign", "of", "the", "##s", "e", "i", "日", "本", ".", ",", "!"]


def rule_tensors(
    shapes: Mapping[str, Any] = GOLDEN["shapes"], *, makes_eps_visible: bool = False
) -> dict[str, Tensor]:
    """Tensors of the published names; makes_eps_visible: the second weight set of the file."""
    return {
        name: torch.from_numpy(_values(name, shape, k, makes_eps_visible))
        for k, (name, shape) in enumerate(sorted(shapes.items()))
    }


def _values(name: str, shape: list[int], k: int, makes_eps_visible: bool) -> np.ndarray:
    j = np.arange(np.prod(shape), dtype=np.float64)
    u = np.sin(12.9898 * (j + 1) + 78.233 * (k + 1)) * 43758.5453
    v = 2 * (u - np.floor(u)) - 1
    lower = name.lower()
    is_position = lower.endswith(("cls_token", "pos_embed"))
    is_word = lower.endswith("embeddings.weight")
    if lower.endswith("bias"):
        v = 0.1 * v
    elif "norm" in lower:
        v = 1 + 0.2 * v
    elif is_word or is_position:
        v = 0.5 * v
    else:
        v = 2 * v / np.sqrt(j.size / shape[0])
    if makes_eps_visible and (is_position or ".patch_embed." in lower):
        v = v * 1e-3
    if makes_eps_visible and is_word:
        v = v * 1e-6
    return v.astype(np.float32).reshape(shape)


def wider_shapes() -> dict[str, list[int]]:
    """The golden shapes with an image tower of 64 for 48: one head of the published width."""
    shapes: dict[str, list[int]] = GOLDEN["shapes"]
    wider = {48: 64, 144: 192, 192: 256}
    return {name: [wider.get(size) or size for size in shape] for name, shape in shapes.items()}


def rule_image(size: Sequence[int], k: int) -> np.ndarray:
    """(height, width, 3) uint8 of `size` (width, height) by the golden file's rule."""
    width, height = size
    y, x, c = np.ogrid[:height, :width, :3]
    tiles = 37 * (x // 16) + 59 * (y // 16) + 83 * c + 41 * k
    tiles = tiles + 29 * (x // 48) * (y // 32) + k * k * (x // 64)
    return (tiles % 256).astype(np.uint8)


def write_imagereward(folder: Path) -> Path:
    """ImageReward.pt and med_config.json; `encoder_width` is wrong, as in the published file."""
    tensors = rule_tensors(wider_shapes())
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    tensors["blip.vision_proj.weight"] = torch.ones(256, 64)
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(
        json.dumps(GOLDEN["config"]["text"] | {"encoder_width": 32})
    )
    return folder


def write_vocabulary(folder: Path) -> Path:
    """vocab.txt with bert-base-uncased's length and special ids, and few words."""
    lines = [f"[unused{i}]" for i in range(30522)]
    lines[0] = "[PAD]"
    lines[100:104] = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines[1000 : 1000 + len(_WORDS)] = _WORDS
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
