"""The DeQA reward: preprocessing and score against the original's, the service on a tiny checkpoint."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deqa_checkpoint import rule_image, write_deqa
from processes import Services, environment
from reward_api import RewardClient
from reward_services.chassis.scorer import Sample
from reward_services.chassis.weights import WeightsError
from reward_services.clip.pixels import clip_normalise
from reward_services.deqa import pixels
from reward_services.deqa.levels import level, probabilities
from reward_services.deqa.scorer import SCORER, DeqaSettings

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "deqa_score.json").read_text())
IMAGES = [rule_image(0), rule_image(1)[:40], rule_image(2)[:, :31], rule_image(3)]


def prepared(scorer, image, include_details=False) -> Sample:
    ready = scorer.prepare(Sample(image))
    return Sample(image, include_details=include_details, prepared=ready)


def load(folder, **settings):
    scorer = SCORER(DeqaSettings(weights=str(folder), **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_deqa(tmp_path_factory.mktemp("deqa"))


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


def golden_image(case) -> np.ndarray:
    width, height = case["size_wh"]
    if case["rgb_b64"]:
        rgb = np.frombuffer(base64.b64decode(case["rgb_b64"]), np.uint8)
        return rgb.reshape(height, width, 3)
    rng = np.random.RandomState(case["rgb"]["numpy_RandomState_seed"])
    return rng.randint(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", GOLDEN["preprocess"], ids=lambda case: str(case["size_wh"]))
def test_pixels_equal_the_originals(case):
    image = golden_image(case)
    square = np.asarray(pixels.padded(image))
    assert list(square.shape[1::-1]) == case["square_size"]
    assert hashlib.sha256(square.tobytes()).hexdigest() == case["square_sha256"]
    values = clip_normalise([pixels.seen(image, 448)]).astype(np.float16)
    assert list(values.shape) == case["pixel_values_shape"]
    found = [values[0, c, y, x] for c, y, x, _ in case["samples"]]
    assert found == [sample[-1] for sample in case["samples"]]
    assert values.astype(np.float64).mean() == pytest.approx(case["mean"], abs=1e-5)
    assert values.astype(np.float64).std() == pytest.approx(case["std"], abs=1e-5)


def test_scores_equal_the_originals():
    logits = [case["logits_excellent_good_fair_poor_bad"] for case in GOLDEN["cases"]]
    found = level(probabilities(np.array(logits)))
    for name, factor, tolerance in (
        ("score_in_fp64", 1, 1e-12),
        ("score_1_5_fp16", 1, 2.6e-3),  # the original's softmax in half precision
        ("server_output", 5, 3.5e-3),
    ):
        expected = [factor * case[name] for case in GOLDEN["cases"]]
        assert found == pytest.approx(expected, abs=tolerance)


def test_an_image_scores_the_same_alone_and_in_any_batch(scorer):
    together = scorer.score([prepared(scorer, image) for image in IMAGES])
    backwards = scorer.score([prepared(scorer, image) for image in IMAGES[::-1]])[::-1]
    alone = [scorer.score([prepared(scorer, image)])[0] for image in IMAGES]
    values = [[score.value for score in run] for run in (together, backwards, alone)]
    assert values[0] == pytest.approx(values[2], abs=1e-5)
    assert values[1] == pytest.approx(values[2], abs=1e-5)
    assert len({round(value, 3) for value in values[0]}) == 4


def test_scores_and_details(scorer):
    (result,) = scorer.score([prepared(scorer, IMAGES[1], include_details=True)])
    rated = result.details["probabilities"]
    assert list(rated) == ["excellent", "good", "fair", "poor", "bad"]
    assert sum(rated.values()) == pytest.approx(1)
    expected = sum(
        weight * rated[word] for word, weight in zip(rated, (5, 4, 3, 2, 1), strict=True)
    )
    assert result.scores["level"] == pytest.approx(expected)
    assert result.value == result.scores["deqa"] == result.scores["level"] / 5
    assert scorer.score([prepared(scorer, IMAGES[1])])[0].details is None


def test_flow_grpos_server_rates_jpeg_copies(folder, scorer):
    compat = load(folder, compat="flow_grpo")
    copy = pixels.jpeg_copy(IMAGES[1])
    (expected,) = scorer.score([prepared(scorer, copy)])
    assert compat.score([prepared(compat, IMAGES[1])]) == [expected]
    assert scorer.score([prepared(scorer, IMAGES[1])]) != [expected]
    assert compat.info().revision != scorer.info().revision


def test_only_the_indexed_shards_are_read(folder, tmp_path, scorer):
    write_deqa(tmp_path)
    write_deqa(tmp_path, form="bin", tensors={})
    (tmp_path / "model-00009-of-00009.safetensors").write_bytes(b"another model's")
    other = load(tmp_path)
    assert other.info().revision == scorer.info().revision
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no model-00002-of-00002"):
        load(tmp_path)


@pytest.mark.parametrize("config", [{"vocab_size": 32001}, {"level_ids": [1, 2, 3, 4, 5]}])
def test_a_model_with_other_tokens_is_refused(tmp_path, config):
    write_deqa(tmp_path, **config)
    with pytest.raises(WeightsError, match="not LLaMA-2's tokens"):
        load(tmp_path)


def test_http_and_grpc_give_the_scorers_values(services: Services, folder, scorer):
    expected = [scorer.score([prepared(scorer, image)])[0].value for image in IMAGES]
    service = services.start("-m", "reward_services", "deqa", "--weights", str(folder))
    for url in (service.http, service.grpc):
        with RewardClient(url) as client:
            found = client.score(IMAGES, [""] * len(IMAGES)).values
            assert found == pytest.approx(expected, abs=1e-5)
            assert client.metadata().score.maximum == 1


def test_without_weights_it_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "reward_services", "deqa", "--weights", str(tmp_path)]
    ports = ["--http-port", "0", "--grpc-port", "0"]
    ended = subprocess.run(
        [*command, *ports], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "holds no config.json" in ended.stderr
    assert "Traceback" not in ended.stderr
