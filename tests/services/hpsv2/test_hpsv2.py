"""HPSv2.1 against the package's figures, on a tiny checkpoint of the published layout."""

import json

import numpy as np
import open_clip
import pytest
import torch

from clip_checkpoints import golden, tile_image, tile_images, write_hps
from reward_services.chassis.scorer import Sample
from reward_services.chassis.weights import WeightsError
from reward_services.hpsv2.model import build, published_config
from reward_services.hpsv2.pixels import hpsv2_pixels
from reward_services.hpsv2.scorer import CHECKPOINT, CONFIG, SCORER, Hpsv2Settings
from scoring import score, values

GOLDEN = golden("hpsv2_tiny")
IMAGES = tile_images(GOLDEN["images"])
PROMPTS = [prompt["text"] for prompt in GOLDEN["prompts"]]


def load(folder, **settings):
    scorer = SCORER(Hpsv2Settings(weights=str(folder), **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hps(tmp_path_factory.mktemp("hpsv2"))


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


@pytest.mark.parametrize("row", range(len(IMAGES)))
def test_scores_equal_the_packages(scorer, row):
    results = score(scorer, [IMAGES[row]] * len(PROMPTS), PROMPTS)
    assert [r.value for r in results] == pytest.approx(GOLDEN["score"][row], abs=1e-6)
    assert [r.value for r in results] == pytest.approx(GOLDEN["score_float64"][row], abs=1e-6)
    assert [r.scores["hpsv2_100"] for r in results] == [100 * r.value for r in results]


@pytest.mark.parametrize("case", GOLDEN["images"], ids=lambda case: str(case["size_wh"]))
def test_pixels_equal_the_packages(case):
    pixels = hpsv2_pixels(tile_images([case])[0])
    expected = case["pixel_values"]
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == np.float32
    for channel, y, x, value in expected["samples"]:
        assert pixels[channel, y, x] == pytest.approx(value, abs=2e-6)
    assert pixels.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-6)
    assert pixels.min() == pytest.approx(expected["min"], abs=2e-6)
    assert pixels.max() == pytest.approx(expected["max"], abs=2e-6)


def test_an_image_that_fits_one_way_is_padded(scorer):
    """The package leaves it 224 x 100, and its model fails."""
    pixels = hpsv2_pixels(tile_image(224, 100, 1))
    assert pixels.shape == (3, 224, 224)
    black = [-1.792263, -1.752097, -1.480220]
    assert pixels[:, 0, 0] == pytest.approx(black, abs=1e-6)
    assert pixels[:, 61, 0] == pytest.approx(black, abs=1e-6)
    assert pixels[0, 62, 0] != pytest.approx(black[0], abs=1e-3)
    assert np.isfinite(values(scorer, [tile_image(1, 500, 2)], ["a line"])).all()


@pytest.mark.parametrize("case", golden("clip_tokens")["cases"], ids=lambda c: repr(c["text"][:9]))
def test_tokens_equal_open_clips(scorer, case):
    (ids,) = scorer._model._tokenizer([case["text"]]).tolist()
    expected = case.get("open_clip", case["hf"])
    assert ids == expected + [0] * (77 - len(expected))


def test_a_score_does_not_depend_on_the_batch(scorer):
    prompts = ["", "word " * 100, "日本語のテキスト", "a cat", "a cat"]
    images = [tile_image(64 + 30 * k, 90, k) for k in range(5)]
    together = values(scorer, images, prompts)
    alone = [values(scorer, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=2e-7)
    assert len(set(together)) == 5


def test_settings(folder, scorer):
    image, prompt = IMAGES[0], PROMPTS[1]
    table = load(folder, score="hpsv2_100")
    (reference,) = values(scorer, [image], [prompt])
    assert values(table, [image], [prompt]) == [100 * reference]
    half = load(folder / CHECKPOINT, dtype="bfloat16")
    assert values(half, [image], [prompt]) == [pytest.approx(reference, abs=0.01)]
    infos = [each.info() for each in (scorer, table, half)]
    assert len({info.revision for info in infos}) == 3
    assert infos[1].score.name == "hpsv2_100"
    assert infos[0].prompt_required


def test_another_architecture_is_another_revision(folder, scorer, tmp_path):
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["head_width"] = 10
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes())
    other = load(tmp_path)
    assert other.info().revision != scorer.info().revision
    assert values(other, IMAGES[:1], PROMPTS[:1]) != values(scorer, IMAGES[:1], PROMPTS[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "has no entry state_dict"),
        ({"state_dict": {"logit_scale": torch.ones([])}}, "does not fit the architecture"),
    ],
)
def test_another_checkpoint_is_refused(folder, tmp_path, content, message):
    torch.save(content, tmp_path / CHECKPOINT)
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_the_published_size():
    """Names and shapes of HPS_v2.1_compressed.pt, without memory for them."""
    config = published_config()
    model = build(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 686
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_109_441
    assert shapes["visual.conv1.weight"] == (1280, 3, 14, 14)
    assert shapes["visual.transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    assert shapes["transformer.resblocks.23.mlp.c_fc.weight"] == (4096, 1024)
    assert shapes["text_projection"] == (1024, 1024)
    assert set(GOLDEN["shapes"]) <= set(shapes)
    assert config["vision_cfg"]["head_width"] == 80
    assert not config.get("quick_gelu", False)
    activations = {type(m) for m in model.modules() if "GELU" in type(m).__name__}
    assert activations == {torch.nn.GELU}


def test_the_causal_mask_is_open_clips():
    config = GOLDEN["open_clip_model_config"]
    mask = open_clip.CLIP(**config).attn_mask
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(build(config).attn_mask, mask)


def test_float16_towers_get_float16_pixels_and_say_the_same(folder, monkeypatch):
    half = load(folder / CHECKPOINT, dtype="float16")
    images, prompts = [tile_image(300, 200, 2), tile_image(224, 224, 1)], ["a red cat", "a dog"]
    found = values(half, images, prompts)
    assert half.prepare(Sample(images[0])).dtype == np.float16
    monkeypatch.setattr("reward_services.hpsv2.scorer.in_half", lambda pixels, dtype: pixels)
    assert half.prepare(Sample(images[0])).dtype == np.float32
    assert values(half, images, prompts) == found
