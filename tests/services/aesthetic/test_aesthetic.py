"""The aesthetic predictor: its head, its tower, and the original's figures."""

import base64
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from clip_checkpoints import golden, head_state, tile_image, tile_images, write_clip, write_head
from reward_services.aesthetic.head import FILE, SHA256, fold, load_head
from reward_services.aesthetic.scorer import SCORER, AestheticSettings
from reward_services.chassis.weights import WeightsError
from reward_services.clip.model import projected
from scoring import score, values

GOLDEN = golden("aesthetic_head")
# beside the checkout, where it is not named: too large for the repository
BESIDE = Path(__file__).parents[4] / "shared" / "data" / FILE
PUBLISHED = os.environ.get("REWARD_AESTHETIC_HEAD", str(BESIDE) if BESIDE.exists() else "")
needs_published_head = pytest.mark.skipif(
    not PUBLISHED, reason=f"REWARD_AESTHETIC_HEAD does not name the published {FILE}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(
        tmp_path_factory.mktemp("clip"),
        activation=GOLDEN["activation"],
        projection=GOLDEN["tiny_projection_dim"],
        tokenizer=False,
    )


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("head") / FILE)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(folder, head, **settings):
    scorer = SCORER(AestheticSettings(weights=str(folder), head=str(head), **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def scorer(folder, head_file):
    return load(folder, head_file, head_sha256=digest(head_file))


def layers_of(state):
    """The head as it was trained: layers with dropouts between."""
    sizes = [state[f"layers.{i}.weight"].shape for i in (0, 2, 4, 6, 7)]
    linear = [torch.nn.Linear(inputs, outputs) for outputs, inputs in sizes]
    dropouts = [torch.nn.Dropout(p) for p in (0.2, 0.2, 0.1)]
    order = [linear[0], dropouts[0], linear[1], dropouts[1], linear[2], dropouts[2], *linear[3:]]
    layers = torch.nn.Sequential(*order)
    layers.load_state_dict({name.removeprefix("layers."): state[name] for name in state})
    return layers.eval().requires_grad_(False)


def test_the_folded_head_is_the_layers(head_file):
    features = np.random.default_rng(0).normal(size=(20, 768)).astype(np.float32)
    layers = layers_of(head_state())
    expected = layers.double()(torch.from_numpy(features).double())[:, 0]
    assert load_head(head_file).scores(features) == pytest.approx(expected.tolist(), abs=1e-10)


@needs_published_head
def test_the_published_head_gives_the_originals_scores():
    path = Path(PUBLISHED)
    assert digest(path) == SHA256 == GOLDEN["head_file_sha256"]
    head, summary = load_head(path), GOLDEN["affine_summary"]
    assert head.bias == pytest.approx(summary["bias"], abs=1e-6)
    assert np.linalg.norm(head.weight) == pytest.approx(summary["weight_l2_norm"], rel=1e-6)
    assert head.weight[:8] == pytest.approx(summary["weight_first_8"], abs=1e-6)
    for vector in GOLDEN["vectors"]:
        feature = np.frombuffer(base64.b64decode(vector["embed_f32_le_b64"]), "<f4")
        assert head.scores(feature[None]) == pytest.approx([vector["score"]], abs=5e-5)


@needs_published_head
@pytest.mark.parametrize("case", GOLDEN["whole_scorer_tiny_tower"])
def test_scores_with_the_published_head_equal_the_originals(folder, case):
    images = tile_images(case["images"])
    found = values(load(folder, PUBLISHED), images, [""] * len(images))
    assert found == pytest.approx(case["score"], abs=5e-5)


def test_the_whole_scorer_is_tower_then_head(folder, scorer):
    """Against transformers' own preprocessing and full model, and the head's layers."""
    from transformers import CLIPImageProcessor, CLIPModel

    images = [tile_image(256, 256, 0), tile_image(264, 256, 1), tile_image(91, 37, 2)]
    pixels = CLIPImageProcessor()(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(folder)
        features = projected(clip.get_image_features(pixel_values=pixels))
        features = features / features.norm(dim=-1, keepdim=True)
        expected = layers_of(head_state())(features)[:, 0].tolist()
    results = score(scorer, images, ["no prompt is read", "", "x"])
    assert [result.value for result in results] == pytest.approx(expected, abs=2e-5)
    assert [result.scores["aesthetic"] for result in results] == [r.value for r in results]


def test_a_score_does_not_depend_on_the_batch(scorer):
    images = [tile_image(64 + 30 * k, 90, k) for k in range(5)]
    together = values(scorer, images, [""] * 5)
    alone = [values(scorer, [image], [""])[0] for image in images]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 5


def test_without_a_head_the_message_says_where_it_is():
    with pytest.raises(WeightsError, match=r"REWARD_AESTHETIC_HEAD.*improved-aesthetic-predictor"):
        SCORER(AestheticSettings()).load("cpu")


def test_another_file_is_refused_unless_its_digest_is_set(folder, head_file):
    with pytest.raises(WeightsError, match=f"SHA-256 is {digest(head_file)}, not {SHA256}"):
        load(folder, head_file)
    own = load(folder, head_file, head_sha256=digest(head_file))
    assert load(folder, head_file, head_sha256="any").info() == own.info()
    assert digest(head_file)[:12] in own.info().revision
    assert not own.info().prompt_required


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "linear layers only"),
        ({"layers.0.weight": np.eye(2)}, "linear layers only"),
        ({"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)}, "gives 2"),
        (
            {f"layers.{i}.weight": np.ones((1, 3)) for i in (0, 2)}
            | {f"layers.{i}.bias": np.zeros(1) for i in (0, 2)},
            r"layers\.2 .* takes 3",
        ),
    ],
)
def test_what_is_no_head_is_refused(state, message):
    with pytest.raises(WeightsError, match=message):
        fold(state)


def test_a_head_for_other_features_is_refused(tmp_path, head_file):
    narrow = write_clip(tmp_path, activation="quick_gelu", projection=12, tokenizer=False)
    with pytest.raises(WeightsError, match=r"features of 768 numbers; .* gives 12"):
        load(narrow, head_file, head_sha256="any")


def test_pickled_code_in_a_head_is_not_run(folder, tmp_path):
    torch.save({"layers.0.weight": Path("harmless")}, tmp_path / "head.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        load(folder, tmp_path / "head.pth", head_sha256="any")


def test_the_published_tower_is_the_image_half_of_the_model():
    # vision_config of openai/clip-vit-large-patch14's config.json.
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        patch_size=14,
        projection_dim=768,
    )
    assert config.hidden_act == "quick_gelu"
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    names = {n for n in GOLDEN["tensor_names_sorted"] if n.startswith("vis")}
    assert names <= set(model.state_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) == 303_966_208
