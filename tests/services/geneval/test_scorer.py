"""The GenEval reward as the chassis sees it: rectangles as objects, colors by a real (tiny) CLIP."""

import subprocess
import sys

import numpy as np
import pytest

from processes import environment
from reward_api.errors import ItemFailure, Reason
from reward_services.chassis.batching.isolation import score_isolated
from reward_services.chassis.scorer import Sample
from reward_services.chassis.weights import WeightsError
from reward_services.geneval.scorer import GenevalScorer, GenevalSettings

RED, BROWN, BLUE, GREEN = (200, 30, 30), (180, 60, 30), (30, 30, 200), (30, 120, 30)
LEFT, RIGHT, LOW = (4, 4, 30, 30), (60, 4, 90, 30), (4, 40, 30, 60)
CUP = {"class": "cup", "count": 1}
DOG = {"class": "dog", "count": 1}


def sample(scorer, image, *include, details=False, **more) -> Sample:
    bare = Sample(image, metadata={"tag": "any", "include": list(include), **more})
    prepared = scorer.prepare(bare)
    return Sample(image, metadata=bare.metadata, include_details=details, prepared=prepared)


def test_all_scores_of_an_image(reward, draw):
    both = draw((RED, LEFT), (BLUE, RIGHT))
    right, wrong = (
        sample(reward, both, CUP, DOG | {"position": [relation, 0]})
        for relation in ("right of", "left of")
    )
    met, failed = reward.score([right, wrong])
    assert met.scores == {"official": 1, "strict": 1, "soft": 1, "flow_grpo": 1}
    assert failed.scores == {
        "official": 0,
        "strict": 0,
        "soft": pytest.approx(2 / 3),
        "flow_grpo": 0.75,
    }
    assert (met.value, failed.value) == (1, 0.75)
    assert met.details is None


def test_a_second_object_costs_strict_and_flow_grpo_but_not_official(reward, draw):
    image = draw((RED, LEFT), (BROWN, RIGHT))
    (result,) = reward.score([sample(reward, image, CUP)])
    assert result.scores == {"official": 1, "strict": 0, "soft": 0, "flow_grpo": 0}


def test_counting_wants_sure_boxes(reward, draw):
    image = draw((RED, LEFT), (BROWN, RIGHT))
    detections = reward.detector.detect_prepared([image])[0]
    detections.scores[:] = [0.95, 0.5]
    scorer = GenevalScorer(GenevalSettings())
    scorer.detector = Fixed(detections)
    scorer.classifier = reward.classifier
    two = CUP | {"count": 2}
    counted, any_tag = scorer.score(
        [sample(scorer, image, two, tag="counting"), sample(scorer, image, two)]
    )
    assert (counted.value, any_tag.value) == (0.5, 1)


class Fixed:
    """Finds the same in every image."""

    identity = "fixed"

    def __init__(self, detections) -> None:
        self._detections = detections

    def prepare(self, image):
        return image

    def detect_prepared(self, images):
        return [self._detections for _ in images]


def test_details_show_boxes_colors_and_reasons(reward, draw):
    image = draw((RED, LEFT), (BLUE, RIGHT), (GREEN, LOW))
    plain = reward.score([sample(reward, image, CUP | {"color": "red"}, DOG, details=True)])[0]
    boxes = {box["class"]: box for box in plain.details["boxes"]}
    assert boxes["cup"]["box"] == list(LEFT)
    assert boxes["cat"]["score"] == pytest.approx(0.95)
    assert ["color" in boxes[name] for name in ("cup", "dog", "cat")] == [True, False, False]
    color = boxes["cup"]["color"]
    other = "white" if color == "black" else "black"
    asked = [
        sample(reward, image, CUP | {"color": wanted}, details=True) for wanted in (color, other)
    ]
    right, wrong = reward.score(asked)
    assert (right.value, wrong.value) == (1, 0.5)
    (clause,) = wrong.details["clauses"]
    assert clause["official_failure"] == f"1 {other} cup expected, 1 {color} found"
    assert (clause["class"], clause["color"], clause["found"]) == ("cup", other, 1)


def test_objects_are_cut_out_and_classified_across_the_batch(reward, draw):
    """The colors of a batch are those of its images alone, and of the classifier asked directly."""
    wanted = CUP | {"color": "red"}
    images = [draw((RED, LEFT)), draw((BLUE, LOW)), draw((BROWN, RIGHT), (RED, LOW))]
    samples = [
        sample(reward, images[0], wanted, details=True),
        sample(reward, images[1], DOG | {"color": "blue"}, details=True),
        sample(reward, images[2], wanted | {"count": 2}, details=True),
    ]
    together = reward.score(samples)
    assert together == [reward.score([one])[0] for one in samples]
    crop = np.full((26, 26, 3), RED, np.uint8)
    (color,) = reward.classifier.classify([reward.classifier.prepare(crop)], ["cup"])
    assert together[0].details["boxes"][0]["color"] == color
    assert all("color" in box for box in together[2].details["boxes"])


def test_nothing_found_is_a_finding(reward, draw):
    (result,) = reward.score([sample(reward, draw(), CUP, details=True)])
    assert result.scores == {"official": 0, "strict": 0, "soft": 0, "flow_grpo": 0}
    assert result.details["boxes"] == []


def test_overlapping_boxes_count_once_only_when_asked(make_scorer, reward, draw):
    image = draw((RED, (4, 4, 40, 40)), (BROWN, (10, 10, 34, 34)))
    wanted = CUP | {"count": 2}
    assert reward.score([sample(reward, image, wanted)])[0].value == 1
    scorer = make_scorer(max_overlap=0.4)
    assert scorer.score([sample(scorer, image, wanted)])[0].value == 0.5


def test_metadata_that_cannot_be_scored_never_reaches_a_batch(reward, draw):
    with pytest.raises(ItemFailure) as caught:
        reward.prepare(Sample(draw()))
    assert caught.value.reason == Reason.MISSING_METADATA


def test_a_strip_never_reaches_the_detector(reward):
    with pytest.raises(ItemFailure) as caught:
        sample(reward, np.zeros((2, 8192, 3), np.uint8), CUP)
    assert caught.value.reason == Reason.IMAGE_SHAPE


def test_an_image_on_which_the_detector_fails_leaves_its_mates_their_scores(reward, draw):
    poison = draw(size=(48, 48))

    class Detector:
        identity = "raises"

        def prepare(self, image):
            return image

        def detect_prepared(self, images):
            if any(image.shape == poison.shape for image in images):
                raise RuntimeError("the network failed")
            return reward.detector.detect_prepared(images)

    scorer = GenevalScorer(GenevalSettings())
    scorer.detector, scorer.classifier = Detector(), reward.classifier
    images = [draw((RED, LEFT)), poison, draw((RED, LEFT))]
    before, failed, after = score_isolated(
        scorer.score, [sample(scorer, image, CUP) for image in images], lambda size: None
    )
    assert isinstance(failed, ItemFailure)
    assert failed.reason == Reason.MODEL_ERROR
    assert before == after == scorer.score([sample(scorer, images[0], CUP)])[0]


@pytest.mark.parametrize("choice", ["official", "strict", "soft", "flow_grpo"])
def test_the_main_score_is_a_setting(make_scorer, draw, choice):
    scorer = make_scorer(score=choice)
    (result,) = scorer.score([sample(scorer, draw((RED, LEFT), (BROWN, RIGHT)), CUP)])
    assert result.value == result.scores[choice]
    info = scorer.info()
    assert info.score.name == choice
    assert info.score in info.sub_scores
    assert set(result.scores) == {one.name for one in info.sub_scores}


def test_the_revision_changes_with_what_changes_scores(make_scorer, reward):
    def revision(**settings) -> str:
        return make_scorer(**settings).info().revision

    others = [revision(score="soft"), revision(compat="flow_grpo"), revision(max_overlap=0.5)]
    assert revision() == reward.info().revision
    assert len({revision(), *others}) == 4


def test_compatibility_is_told(make_scorer, reward):
    assert "red and blue exchanged" in make_scorer(compat="flow_grpo").info().description
    assert "exchanged" not in reward.info().description


def test_warmup_samples_can_be_scored(reward):
    samples = [
        sample(reward, one.image, *one.metadata["include"]) for one in reward.warmup_samples()
    ]
    assert len(reward.score(samples)) == len(samples)


def test_images_of_one_shape_share_a_batch(reward, draw):
    keys = {reward.batch_key(Sample(draw(size=size))) for size in ((64, 48), (64, 48), (48, 64))}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "no detector weights are given: set REWARD_GENEVAL_DETECTOR_WEIGHTS"),
        ({"detector_weights": "nowhere/it.pth"}, "there is no nowhere/it.pth"),
        ({"detector_weights": ".", "clip_weights": "nowhere"}, "no file or folder nowhere"),
    ],
)
def test_missing_weights_are_one_clear_line(settings, says):
    with pytest.raises(WeightsError, match=says):
        GenevalScorer(GenevalSettings(**settings)).load("cpu")


def test_missing_weights_are_found_before_torch_is_imported():
    code = """
import sys
from reward_services.chassis.weights import WeightsError
from reward_services.geneval.scorer import SCORER
try:
    SCORER(SCORER.Settings()).load("cpu")
except WeightsError:
    print(*{name.partition(".")[0] for name in sys.modules} & {"torch", "open_clip", "mmdet"}, "end")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["end"]
