"""PickScore against the original's figures, on a tiny checkpoint of the published layout."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast  # pyright: ignore

from clip_checkpoints import golden, tile_image, tile_images, write_clip, write_tokenizer
from reward_services.chassis.weights import WeightsError
from reward_services.clip.model import ClipPairs, pair_cosines
from reward_services.pickscore.scorer import SCORER, TOKENIZER, PickScoreSettings, tokenizer_source
from scoring import score, values

GOLDEN = golden("pickscore_tiny")
LONG = "a very long prompt about nothing at all " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("pickscore"), activation=GOLDEN["activation"])


def load(folder, **settings):
    scorer = SCORER(PickScoreSettings(weights=str(folder), **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["prompts"][0][:12])
def test_scores_equal_the_originals(scorer, case):
    results = score(scorer, tile_images(case["images"]), case["prompts"])
    assert [result.value for result in results] == pytest.approx(case["reward"], abs=2e-6)
    raw = [result.scores["pickscore"] for result in results]
    assert raw == pytest.approx(case["times_26"], abs=5e-5)
    assert [result.scores["pickscore_26"] for result in results] == pytest.approx(
        [value / GOLDEN["divided_by"] for value in raw], rel=1e-12
    )


def test_the_scale_is_the_checkpoints(scorer):
    assert scorer._clip.scale == pytest.approx(GOLDEN["embeds"]["logit_scale_exp"], rel=1e-7)


def test_tokens_equal_the_originals(folder):
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    for case in golden("clip_tokens")["cases"]:
        ids = tokenizer(case["text"], truncation=True, max_length=77)["input_ids"]
        assert ids == case["hf"], case["text"]


def test_a_score_does_not_depend_on_the_batch(scorer):
    prompts = ["", LONG, "naïve café 日本語 😀", "a photo of a red cat", "a photo of a red cat"]
    images = [tile_image(64 + 30 * k, 90, k) for k in range(5)]
    together = values(scorer, images, prompts)
    alone = [values(scorer, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=2e-6)
    assert values(scorer, images[::-1], prompts[::-1])[::-1] == pytest.approx(together, abs=2e-6)
    assert len(set(together)) == 5


def test_what_lies_beyond_77_tokens_is_not_read(scorer):
    image = tile_image(224, 224, 3)
    once, more = values(scorer, [image] * 2, [LONG, LONG + "but then a red cat"])
    assert once == more
    assert once != values(scorer, [image], ["a very long prompt about nothing at all"])[0]


def test_equal_prompts_are_encoded_once():
    encoded = []

    def encode(prompts):
        encoded.append(prompts)
        return torch.eye(len(prompts))

    images = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 5.0], [4.0, 0.0]])
    assert pair_cosines(images, ["a", "b", "a", "a"], encode).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert encoded == [["a", "b"]]


def test_the_tokenizer_may_lie_elsewhere(folder, tmp_path, scorer):
    model = write_clip(tmp_path / "model", activation="gelu", tokenizer=False)
    assert tokenizer_source(PickScoreSettings(weights=str(model))) == TOKENIZER
    assert tokenizer_source(PickScoreSettings()) == TOKENIZER
    assert tokenizer_source(PickScoreSettings(weights=str(folder))) == str(folder)
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer")
    apart = load(model, tokenizer=str(tmp_path / "tokenizer"))
    image = tile_image(200, 100, 1)
    assert values(apart, [image], ["a cat"]) == values(scorer, [image], ["a cat"])


def test_a_foreign_tokenizer_is_refused(folder, tmp_path):
    (tmp_path / "vocab.json").write_text(
        json.dumps({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(WeightsError, match="3 tokens, the model"):
        ClipPairs(folder, tmp_path, "cpu", "float32")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    write_clip(tmp_path, activation="gelu", lacks="visual_projection.weight")
    with pytest.raises(WeightsError, match=r"lacks 1 tensors.*visual_projection\.weight"):
        load(tmp_path)


def test_the_main_score_and_the_number_format_are_settings(folder, scorer):
    image, prompt = tile_image(256, 256, 1), "a photo of a red cat"
    raw = load(folder, score="pickscore")
    (reference,) = values(scorer, [image], [prompt])
    assert values(raw, [image], [prompt]) == [pytest.approx(26 * reference, rel=1e-12)]
    assert raw.info().score.name == "pickscore"
    half = load(folder, dtype="bfloat16")
    assert values(half, [image], [prompt]) == [pytest.approx(reference, abs=0.1)]
    revisions = {each.info().revision for each in (scorer, raw, half)}
    assert len(revisions) == 3
    assert all("sha256:" in revision for revision in revisions)


# What config.json of PickScore_v1 (as of CLIP-ViT-H-14) says beyond the defaults of transformers.
VIT_H_14 = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}


def test_the_published_size_has_the_tiny_ones_names():
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**VIT_H_14))
    assert sum(parameter.numel() for parameter in model.parameters()) == 986_109_441
    names = set(model.state_dict())
    # The golden model has two layers in each tower.
    assert {name for name in GOLDEN["tensor_names_sorted"] if name not in names} == set()
    assert "vision_model.encoder.layers.31.mlp.fc2.weight" in names
    assert model.visual_projection.weight.shape == (1024, 1280)


def test_an_image_of_one_colour_is_scored(scorer):
    flat = np.full((7, 5, 3), 255, np.uint8)
    assert np.isfinite(values(scorer, [flat], ["white"])).all()
