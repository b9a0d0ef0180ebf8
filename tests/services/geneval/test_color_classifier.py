"""The color classifier against open_clip's own loading, preprocessing and zero-shot recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from geneval_clip import TINY, write_open_clip
from reward_services.chassis.weights import WeightsError
from reward_services.geneval import color_classifier
from reward_services.geneval.color_classifier import ColorClassifier, load_color_classifier
from reward_services.geneval.colors import COLORS, color_texts

SIZES = [(28, 28), (60, 31), (31, 64), (5, 90), (200, 151), (1, 1)]
NAMES = ["cup", "dog", "cup", "traffic light", "cat", "dog"]


def load(folder: Path, *, quick_gelu: bool = True, dtype: str = "float32") -> ColorClassifier:
    return load_color_classifier(
        folder / "open_clip_config.json",
        folder / "open_clip_model.safetensors",
        device="cpu",
        dtype=dtype,
        quick_gelu=quick_gelu,
    )


@pytest.fixture(scope="module")
def classifier(clip_folder: Path) -> ColorClassifier:
    return load(clip_folder)


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES]


@torch.inference_mode()
def reference(folder: Path, crops: list[np.ndarray]) -> torch.Tensor:
    """(n, 10) logits by open_clip alone."""
    made: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, _, transform = made
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    rows = []
    for crop, name in zip(crops, NAMES, strict=True):
        columns = []
        for color in COLORS:
            features = model.encode_text(tokenizer(color_texts(name, color)))
            mean = F.normalize(features, dim=-1).mean(dim=0)
            columns.append(mean / mean.norm())
        image = model.encode_image(transform(Image.fromarray(crop)).unsqueeze(0))
        rows.append(100.0 * F.normalize(image, dim=-1) @ torch.stack(columns, dim=1))
    return torch.cat(rows)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_logits_equal_open_clip_s(tmp_path: Path, crops, quick_gelu):
    folder = write_open_clip(tmp_path, TINY | {"quick_gelu": quick_gelu})
    classifier = load(folder, quick_gelu=quick_gelu)
    squares = [classifier.prepare(crop) for crop in crops]
    wanted = reference(folder, crops)
    torch.testing.assert_close(classifier.logits(squares, NAMES), wanted, atol=2e-4, rtol=0)
    assert classifier.classify(squares, NAMES) == [COLORS[i] for i in wanted.argmax(dim=1)]
    assert wanted.std(dim=0).min() > 0.1  # the answer depends on the pixels


def test_the_activation_is_not_left_to_the_config(clip_folder: Path, tmp_path: Path, crops):
    squares = [load(clip_folder).prepare(crop) for crop in crops]
    quick = load(clip_folder).logits(squares, NAMES)
    plain = load(clip_folder, quick_gelu=False).logits(squares, NAMES)
    assert (quick - plain).abs().max() > 0.01
    silent = write_open_clip(tmp_path, TINY | {"quick_gelu": False})
    assert torch.equal(load(silent).logits(squares, NAMES), quick)


def test_a_crop_s_color_does_not_depend_on_the_batch(classifier, crops, monkeypatch):
    squares = [classifier.prepare(crop) for crop in crops]
    together = classifier.logits(squares, NAMES)
    alone = [classifier.logits([s], [n]) for s, n in zip(squares, NAMES, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=0)
    colors = classifier.classify(squares, NAMES)
    monkeypatch.setattr(color_classifier, "_CHUNK", 4)
    assert classifier.classify(squares, NAMES) == colors
    assert classifier.classify([], []) == []


def test_text_features_are_computed_once_per_class(clip_folder: Path, crops, monkeypatch):
    classifier = load(clip_folder)
    squares = [classifier.prepare(crop) for crop in crops]
    first = classifier.logits(squares, NAMES)
    encoded = []
    monkeypatch.setattr(classifier._model, "encode_text", lambda texts: encoded.append(texts))
    assert torch.equal(classifier.logits(squares, NAMES), first)
    assert encoded == []


def test_half_precision_gives_the_same_logits_roughly(clip_folder: Path, classifier, crops):
    squares = [classifier.prepare(crop) for crop in crops]
    half = load(clip_folder, dtype="bfloat16").logits(squares, NAMES)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, classifier.logits(squares, NAMES), atol=5, rtol=0)


def test_weights_that_do_not_fit_are_one_clear_line(tmp_path: Path, clip_folder: Path):
    other = write_open_clip(tmp_path, TINY | {"embed_dim": 16})
    (other / "open_clip_config.json").write_bytes(
        (clip_folder / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(WeightsError, match=r"does not fit open_clip_config\.json: size mismatch"):
        load(other)


def test_the_published_network_has_the_published_shapes():
    """The loader builds from the config alone; OpenAI's ViT-L/14 has 427,616,513 parameters."""
    options = open_clip.get_model_config("ViT-L-14-quickgelu")
    assert options is not None
    with torch.device("meta"):
        weights = open_clip.CLIP(**options).state_dict()
    assert sum(tensor.numel() for tensor in weights.values()) == 427_616_513
    assert weights["visual.conv1.weight"].shape == (1024, 3, 14, 14)
    assert weights["visual.transformer.resblocks.23.mlp.c_fc.weight"].shape == (4096, 1024)
    assert weights["text_projection"].shape == (768, 768)
