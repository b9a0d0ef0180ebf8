"""CLIPScore against flow_grpo's and DiffusionNFT's figures, on a tiny checkpoint."""

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clip_checkpoints import golden, tile_image, tile_images, write_clip
from reward_api.errors import ItemFailure, Reason
from reward_services.chassis.scorer import Sample
from reward_services.clipscore.pixels import clipscore_pixels
from reward_services.clipscore.scorer import SCORER, ClipScoreSettings
from scoring import score, values

GOLDEN = golden("clipscore_tiny")
PIXELS = golden("clip_preprocess")["cases"]


def load(folder, **settings):
    scorer = SCORER(ClipScoreSettings(weights=str(folder), **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clipscore"), activation=GOLDEN["activation"])


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


@pytest.mark.parametrize(
    ("original", "name"),
    [("flow_grpo_div_30", "flow_grpo"), ("diffusionnft_div_100", "diffusionnft")],
)
def test_scores_equal_the_originals(scorer, original, name):
    for case in GOLDEN[original]:
        results = score(scorer, tile_images(case["images"]), case["prompts"])
        found = [result.scores[name] for result in results]
        assert found == pytest.approx(case["reward"], abs=2e-6)


def test_the_three_scores_are_one_number(scorer):
    (result,) = score(scorer, [tile_image(300, 200, 2)], ["a photo of a red cat"])
    cosine = result.scores["cosine"]
    assert -1 <= cosine <= 1
    assert result.value == result.scores["flow_grpo"]
    assert result.scores["flow_grpo"] == pytest.approx(100 * cosine / 30, rel=1e-6)
    assert result.scores["diffusionnft"] == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize("case", PIXELS, ids=lambda case: "x".join(map(str, case["size_wh"])))
def test_pixels_equal_the_originals(case):
    width, height = case["size_wh"]
    y, x, c = np.ogrid[:height, :width, :3]
    image = ((7 * x + 13 * y + 29 * c + x * y // 5 + 31 * case["k"]) % 256).astype(np.uint8)
    image.flags.writeable = False
    expected = case["flow_grpo_clipscore"]
    pixels = clipscore_pixels(image)
    assert list(pixels.shape) == expected["shape"]
    assert pixels.dtype == np.float32
    for channel, row, column, value in expected["samples"]:
        assert pixels[channel, row, column] == pytest.approx(value, abs=2e-6)
    assert pixels.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-6)


def test_a_strip_is_refused_before_it_takes_memory():
    with pytest.raises(ItemFailure) as caught:
        clipscore_pixels(np.zeros((8192, 1, 3), np.uint8))
    assert caught.value.reason == Reason.IMAGE_SHAPE
    assert clipscore_pixels(np.zeros((64, 1, 3), np.uint8)).shape == (3, 224, 224)


def test_a_score_does_not_depend_on_the_batch(scorer):
    prompts = ["", "word " * 100, "日本語のテキスト", "a cat", "a cat"]
    images = [tile_image(64 + 30 * k, 90, k) for k in range(5)]
    together = values(scorer, images, prompts)
    alone = [values(scorer, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=2e-6)
    assert len(set(together)) == 5


def test_the_activation_is_the_checkpoints(scorer, tmp_path):
    """OpenAI's weights were trained with QuickGELU; GELU gives other numbers."""
    other = load(write_clip(tmp_path, activation="gelu"))
    image, prompt = tile_image(224, 224, 0), "a photo of a red cat"
    assert abs(values(other, [image], [prompt])[0] - values(scorer, [image], [prompt])[0]) > 1e-3


def test_the_main_score_is_a_setting(folder, scorer):
    cosine = load(folder, score="cosine")
    (result,) = score(cosine, [tile_image(224, 224, 0)], ["a cat"])
    assert result.value == result.scores["cosine"]
    assert cosine.info().score.name == "cosine"
    assert cosine.info().revision != scorer.info().revision
    assert cosine.info().prompt_required


# What config.json of openai/clip-vit-large-patch14 says beyond the defaults of transformers.
VIT_L_14 = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
}


def test_the_published_size_has_the_tiny_ones_names():
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**VIT_L_14))
    assert sum(parameter.numel() for parameter in model.parameters()) == 427_616_513
    names = set(model.state_dict())
    assert {name for name in GOLDEN["tensor_names_sorted"] if name not in names} == set()
    assert model.visual_projection.weight.shape == (768, 1024)
    assert model.text_projection.weight.shape == (768, 768)


def test_float16_towers_get_float16_pixels_and_say_the_same(folder, monkeypatch):
    half = load(folder, dtype="float16")
    images, prompts = [tile_image(300, 200, 2), tile_image(224, 224, 1)], ["a red cat", "a dog"]
    found = values(half, images, prompts)
    assert half.prepare(Sample(images[0])).dtype == np.float16
    monkeypatch.setattr("reward_services.clipscore.scorer.in_half", lambda pixels, dtype: pixels)
    assert half.prepare(Sample(images[0])).dtype == np.float32
    assert values(half, images, prompts) == found
