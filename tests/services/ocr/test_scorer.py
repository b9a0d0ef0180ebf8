"""The OCR reward as the chassis sees it, on the real RapidOCR networks."""

import json

import numpy as np
import pytest

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore
from reward_services.chassis.batching.isolation import score_isolated
from reward_services.chassis.scorer import Sample
from reward_services.ocr import scorer as ocr


def sample(image: np.ndarray, prompt: str, scorer: ocr.OcrScorer, details=False) -> Sample:
    bare = Sample(image=image, prompt=prompt, include_details=details)
    return Sample(image, prompt, include_details=details, prepared=scorer.prepare(bare))


@pytest.fixture(scope="module")
def reward() -> ocr.OcrScorer:
    scorer = ocr.SCORER(ocr.OcrSettings(threads=1))
    scorer.load("cpu")
    return scorer


def test_scores_and_details(draw, reward):
    image = draw(["Open", "Tea"], (128, 96), 30)
    (result,) = reward.score([sample(image, 'a sign that says "Tea"', reward, details=True)])
    assert result.scores == {"flow_grpo": 1.0, "similarity": 0.0, "exact": 0.0}
    assert result.value == 1.0
    details = result.details
    assert details["target"] == "Tea"
    assert details["text"] == "OpenTea"
    assert [line["text"] for line in details["lines"]] == ["Open", "Tea"]
    assert all(len(line["box"]) == 4 and line["confidence"] > 0.5 for line in details["lines"])
    assert details["engine"].startswith("rapidocr==")


def test_an_image_without_text_is_a_reading_and_scores_zero(reward):
    blank = np.full((64, 64, 3), 80, np.uint8)
    (result,) = reward.score([sample(blank, 'says "Tea"', reward)])
    assert result.value == 0.0
    assert result.scores == {"flow_grpo": 0.0, "similarity": 0.0, "exact": 0.0}
    assert result.details is None


def test_a_prompt_without_target_never_reaches_a_batch(draw, reward):
    with pytest.raises(ItemFailure) as caught:
        sample(draw("Tea"), "no quotes", reward)
    assert caught.value.reason == Reason.PROMPT_TARGET


@pytest.mark.parametrize("choice", ["flow_grpo", "similarity", "exact"])
def test_the_main_score_is_a_setting(draw, choice):
    scorer = ocr.SCORER(ocr.OcrSettings(score=choice, detect=False, threads=1))
    scorer.load("cpu")
    (result,) = scorer.score([sample(draw("HELLO", (96, 32), 20), 'a "hell"', scorer)])
    assert (
        result.value
        == result.scores[choice]
        == {"flow_grpo": 1, "similarity": 0.75, "exact": 0}[choice]
    )
    assert scorer.info().score.name == choice


@pytest.mark.parametrize("case_id", [343, 344])
def test_an_engine_that_raises_is_an_item_error_where_the_original_says_zero(
    draw, reward, golden, case_id
):
    cases = json.loads((golden / "ocr_reward.json").read_text())["cases"]
    case = next(case for case in cases if case["id"] == case_id)
    assert (case["recognized"], case["reward"]) == ("RAISE", 0.0)
    poison = np.zeros((48, 48, 3), np.uint8)

    class Engine:
        identity = "raises"

        def read(self, images):
            if any(image.shape == poison.shape for image in images):
                raise RuntimeError("the network failed")
            return reward.engine.read(images)

    scorer = ocr.SCORER(ocr.OcrSettings())
    scorer.engine = Engine()
    images = [draw("HELLO", (96, 32), 20), poison, draw("HELLO", (96, 32), 20)]
    samples = [sample(image, case["prompt"], scorer) for image in images]
    before, failed, after = score_isolated(scorer.score, samples, lambda size: None)
    assert isinstance(failed, ItemFailure)
    assert failed.reason == Reason.MODEL_ERROR
    assert isinstance(before, ItemScore)
    assert before == after
    assert before.value == 1.0


def test_the_revision_changes_with_what_changes_scores(reward):
    def revision(**settings) -> str:
        scorer = ocr.SCORER(ocr.OcrSettings(**settings))
        scorer.engine = reward.engine
        return scorer.info().revision

    assert revision() == reward.info().revision == revision(threads=7)
    others = [revision(score="exact"), revision(min_confidence=0.6), revision(detect=False)]
    assert len({revision(), *others}) == 4


def test_warmup_samples_can_be_scored(reward):
    prepared = [sample(s.image, s.prompt, reward) for s in reward.warmup_samples()]
    assert len(reward.score(prepared)) == len(prepared)


@pytest.mark.parametrize(
    "settings", [{"runtime": "paddle"}, {"recogniser": "en_PP-OCRv4_mobile_rec"}]
)
def test_settings_that_the_engine_would_ignore_are_refused(settings):
    with pytest.raises(ValueError, match="engine=paddleocr"):
        ocr.OcrSettings(**settings)
    assert ocr.OcrSettings(engine="paddleocr", **settings).engine == "paddleocr"
