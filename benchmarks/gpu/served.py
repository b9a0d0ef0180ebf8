"""Steps of rewards: a service with random weights of the published shapes, called over gRPC."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from environment import device
from safetensors.torch import save_file
from step import Write

import clip_checkpoints
from geneval_clip import write_open_clip
from mask2former_checkpoint import write_checkpoint
from processes import Services
from reward_api import RewardClient

IMAGES, SIDE = 64, 512
MEASURED_S = 4.0
"""For which calls follow one another."""
TOWERS = {
    # PickScore: CLIP ViT-H/14; CLIPScore: OpenAI's CLIP ViT-L/14
    "pickscore": (1024, ("gelu", 1024, 4096, 24, 16), (1280, 5120, 32, 16)),
    "clipscore": (768, ("quick_gelu", 768, 3072, 12, 12), (1024, 4096, 24, 16)),
}


def service(name: str, shrunk: bool, write: Write) -> None:
    place = device(shrunk)
    images, side = (8, 64) if shrunk else (IMAGES, SIDE)
    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8))
    texts = [f"a photo of {n} red cups" for n in range(images)]
    metadata = None
    if name == "geneval":
        clause = {"class": "cup", "count": 1, "color": "red"}
        metadata = [{"tag": "colors", "include": [clause]}] * images
    with tempfile.TemporaryDirectory() as folder:
        flags = _weights(name, Path(folder), shrunk, place)
        services = Services(Path(folder))
        try:
            began = time.perf_counter()
            command = ("-m", "reward_services", name, *flags, "--device", str(place))
            # with what make gpu-kit brought, which tests do without
            url = services.start(*command, PYTHONPATH=os.environ["PYTHONPATH"]).grpc
            found = {"load_s": round(time.perf_counter() - began, 1)}
            write(found)
            found["images_per_second"] = _rate(url, pixels, texts, metadata)
        finally:
            services.stop()
    write(found)


def _rate(url: str, pixels: list, texts: list, metadata: list | None) -> float:
    with RewardClient(url) as client:
        scores = client.score(pixels, texts, metadata)  # the first call does not count
        assert np.isfinite(scores.values).all(), "a score is not finite"
        began, images, seconds = time.perf_counter(), 0, 0.0
        while seconds < MEASURED_S:
            client.score(pixels, texts, metadata)
            images += len(pixels)
            seconds = time.perf_counter() - began
        return images / seconds


def _weights(name: str, folder: Path, shrunk: bool, place: torch.device) -> list[str]:
    """Writes checkpoints with random weights; the settings that name them."""
    if name == "geneval":
        size = "tiny" if shrunk else "full"
        detector = write_checkpoint(folder / "detector", size=size)
        clip = write_open_clip(
            folder / "clip", None if shrunk else _open_clip("ViT-L-14-quickgelu")
        )
        return ["--detector-weights", str(detector), "--clip-weights", str(clip)]
    model = folder / "model"
    if shrunk:
        if name == "hpsv2":
            return ["--weights", str(clip_checkpoints.write_hps(model))]
        return ["--weights", str(clip_checkpoints.write_clip(model, activation="gelu"))]
    if name == "hpsv2":
        _write_hps(model, place)
    else:
        _write_clip(model, *TOWERS[name], place)
    return ["--weights", str(model)]


def _open_clip(name: str) -> dict:
    import open_clip

    config = open_clip.get_model_config(name)
    assert config is not None  # part of open_clip
    return config


def _write_hps(folder: Path, place: torch.device) -> None:
    from reward_services.hpsv2.model import build, published_config
    from reward_services.hpsv2.scorer import CHECKPOINT

    folder.mkdir()
    model = build(published_config())
    torch.save({"state_dict": _random(model, place)}, folder / CHECKPOINT)


def _write_clip(folder: Path, projection: int, text: tuple, vision: tuple, place: torch.device):
    from transformers import CLIPConfig, CLIPModel

    activation, *text_sizes = text
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPConfig(
        projection_dim=projection,
        text_config={**dict(zip(names, text_sizes, strict=True)), "hidden_act": activation},
        vision_config={
            **dict(zip(names, vision, strict=True)),
            **{"hidden_act": activation, "patch_size": 14},
        },
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    folder.mkdir()
    values = {"architectures": ["CLIPModel"], **config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values, default=str))
    save_file(_random(model, place), folder / "model.safetensors", metadata={"format": "pt"})
    clip_checkpoints.write_tokenizer(folder)


def _random(model: torch.nn.Module, place: torch.device) -> dict[str, torch.Tensor]:
    """Weights of a sane size for a model on the meta device, in 16 bits as half the file; the service
    computes in the type that it always does."""
    torch.manual_seed(0)
    return {
        name: (torch.randn(tensor.shape, device=place) * 0.02).half().cpu()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
