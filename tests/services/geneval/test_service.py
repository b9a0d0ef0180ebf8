"""The whole of it: mmdet's network and open_clip's, from checkpoints, behind both protocols."""

import numpy as np
import pytest

from geneval_clip import write_open_clip
from mask2former_checkpoint import write_checkpoint
from processes import Services
from reward_api import RewardClient
from reward_services.geneval.classes import CLASSES

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geneval")
    services = Services(folder)
    yield services.start(
        "-m",
        "reward_services",
        "geneval",
        REWARD_GENEVAL_DETECTOR_WEIGHTS=str(write_checkpoint(folder / "detector")),
        REWARD_GENEVAL_CLIP_WEIGHTS=str(write_open_clip(folder / "clip")),
    )
    services.stop()


def pictures(count: int) -> np.ndarray:
    """(count, 96, 128, 3) uint8: coloured blocks."""
    random = np.random.default_rng(7)
    blocks = random.integers(0, 256, (count, 6, 8, 3), np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


def clauses(*include: dict) -> dict:
    return {"tag": "colors", "include": list(include), "prompt": "not read"}


def test_boxes_cross_both_wires(service):
    images = pictures(4)
    asked = [clauses({"class": name, "count": 1, "color": "red"}) for name in CLASSES[:3]]
    metadata = [*asked, clauses({"class": "unicorn", "count": 1})]
    batches = []
    for address in (service.http, service.grpc):
        with RewardClient(address, on_error="nan") as client:
            batches.append(client.score(images, ["a prompt"] * 4, metadata, include_details=True))
            described = client.metadata()
    for batch in batches:
        assert {i: error.reason for i, error in batch.errors.items()} == {3: "SCHEMA"}
        assert set(batch.scores) == {"flow_grpo", "soft", "strict", "official"}
        check_boxes([box for details in batch.details[:3] if details for box in details["boxes"]])
    assert '"include"' in described.metadata_schema


def check_boxes(boxes: list[dict]) -> None:
    """Well formed; the two wires' are not compared, since the networks are random ones.

    Their masks lie so near the threshold that how the batcher cuts a call moves the boxes.
    """
    assert boxes, "random weights find something"
    for box in boxes:
        x0, y0, x1, y1 = box["box"]
        assert 0 <= x0 < x1 <= 128
        assert 0 <= y0 < y1 <= 96
        assert box["class"] in CLASSES
        assert 0.3 < box["score"] <= 1


def test_a_prompt_about_what_was_found_is_met(service):
    """The loop closed: the service's own boxes say what to ask, and asking that scores 1."""
    image = pictures(1)
    with RewardClient(service.grpc) as client:
        anything = clauses({"class": CLASSES[0], "count": 1})
        found = client.score(image, [""], [anything], include_details=True).details[0]
        assert found
        counts: dict[str, int] = {}
        for box in found["boxes"]:
            counts[box["class"]] = counts.get(box["class"], 0) + 1
        name, count = max(counts.items(), key=lambda item: item[1])
        met = client.score(image, [""], [clauses({"class": name, "count": count})])
        missed = client.score(image, [""], [clauses({"class": name, "count": count + 1})])
    for score in ("flow_grpo", "soft", "strict", "official"):
        assert met.scores[score][0] == 1.0
        assert missed.scores[score][0] < 1.0
