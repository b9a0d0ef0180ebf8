"""Tiny CLIP checkpoints in the published layouts, with the weights of the golden files' rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

Rule = Callable[[str], tuple[float, float] | None]
"""Lower-case name -> offset and scale of the noise; None: scaled by the fan-in."""
Shapes = Mapping[str, tuple[int, ...]]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def tile_image(width: int, height: int, k: int) -> np.ndarray:
    """(height, width, 3) uint8: the rule `image` of the CLIP golden files."""
    y, x, c = np.ogrid[:height, :width, :3]
    tiles = 37 * (x // 16) + 59 * (y // 16) + 83 * c + 41 * k
    return ((tiles + 29 * (x // 48) * (y // 32) + k * k * (x // 64)) % 256).astype(np.uint8)


def tile_images(entries: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The images that a golden file names by `size_wh` and `k`."""
    images = []
    for entry in entries:
        width, height = entry["size_wh"]
        images.append(tile_image(width, height, entry["k"]))
    return images


def write_tokenizer(folder: Path) -> None:
    """CLIP's real vocabulary as `vocab.json` and `merges.txt`, from the copy in open_clip's wheel."""
    tokenizer = SimpleTokenizer()
    published = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {published.get(token, token): i for token, i in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")


def write_clip(
    folder: Path, *, activation: str, projection: int = 12, lacks: str = "", tokenizer: bool = True
) -> Path:
    """transformers' layout: `config.json`, `model.safetensors` and the tokenizer's two files.

    lacks: a tensor to leave out.
    """
    folder.mkdir(exist_ok=True)
    config = clip_config(activation, projection)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = dict(rule_tensors(clip_shapes(config), _clip_rule))
    # As OpenAI's published file: whole numbers that today's models compute.
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors.pop(lacks, None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_hps(folder: Path) -> Path:
    """HPSv2's layout, with open_clip's configuration file for the tiny size."""
    folder.mkdir(exist_ok=True)
    made = golden("hpsv2_tiny")
    shapes = {name: tuple(shape) for name, shape in made["shapes"].items()}
    state = dict(rule_tensors(shapes, _hps_rule))
    torch.save({"epoch": 1, "state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    config = {"model_cfg": made["open_clip_model_config"]}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def head_state() -> dict[str, torch.Tensor]:
    """The aesthetic head's names and shapes: linear layers at 0, 2, 4, 6, 7, dropouts between."""
    sizes = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (inputs, outputs) in sizes.items():
        shapes[f"layers.{place}.weight"] = (outputs, inputs)
        shapes[f"layers.{place}.bias"] = (outputs,)
    return dict(rule_tensors(shapes, _clip_rule))


def write_head(path: Path) -> Path:
    torch.save(head_state(), path)
    return path


def clip_config(activation: str, projection: int) -> dict[str, Any]:
    """`config.json` of the golden files' tiny model."""
    tiny = golden("pickscore_tiny")["rules"]["tiny_model"]

    def tower(kind: str, **own: int) -> dict[str, Any]:
        sizes = tiny[kind]
        return own | {
            "hidden_size": sizes["hidden_size"],
            "intermediate_size": sizes["intermediate_size"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_act": activation,
            "layer_norm_eps": tiny["layer_norm_eps"],
        }

    text, vision = tiny["text"], tiny["vision"]
    # As in the published files, although the tokens are others: the end token is found by its size.
    special_tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projection,
        "text_config": tower(
            "text",
            vocab_size=text["vocab_size"],
            max_position_embeddings=text["positions"],
            **special_tokens,
        ),
        "vision_config": tower(
            "vision", image_size=vision["image_size"], patch_size=vision["patch_size"]
        ),
    }


def clip_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rule_tensors(shapes: Shapes, rule: Rule) -> Iterator[tuple[str, torch.Tensor]]:
    """The rule `weights`: noise by place and index, scaled by what the name says."""
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        j = np.arange(int(np.prod(shape)), dtype=np.float64)
        u = np.sin(12.9898 * (j + 1) + 78.233 * (k + 1)) * 43758.5453
        v = 2 * (u - np.floor(u)) - 1
        offset, scale = rule(name.lower()) or (0.0, 2 / np.sqrt(j.size / (shape or (1,))[0]))
        if name == "logit_scale":
            offset, scale = np.log(100), 0.0
        yield name, torch.from_numpy((offset + scale * v).astype(np.float32).reshape(shape))


def _clip_rule(name: str) -> tuple[float, float] | None:
    if name.endswith("bias"):
        return 0.0, 0.1
    if "norm" in name:
        return 1.0, 0.2
    is_embedding = "embedding.weight" in name and "patch" not in name
    return (0.0, 0.5) if is_embedding or name.endswith("class_embedding") else None


def _hps_rule(name: str) -> tuple[float, float] | None:
    if name.endswith("bias"):
        return 0.0, 0.1
    if any(part.startswith("ln_") for part in name.split(".")):
        return 1.0, 0.2
    embeddings = ("class_embedding", "positional_embedding", "token_embedding.weight")
    return (0.0, 0.5) if name.endswith(embeddings) else None
