"""The sub-scores against answers of geneval's script and of the published reward server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_api.callers.geneval import published_answer
from reward_api.errors import ItemFailure, Reason
from reward_services.geneval.boxes import kept_boxes, min_score
from reward_services.geneval.evaluate import Scene, boxes_to_color, evaluate
from reward_services.geneval.prompt_metadata import Clause, PromptMetadata, parse_metadata

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "geneval_evaluate.json").read_text())["cases"]
BATCHES = json.loads((GOLDEN / "geneval_batches.json").read_text())["cases"]

REFUSED = {
    429: Reason.SCHEMA,  # group -1, which Python takes for the last clause
    430: Reason.SCHEMA,  # a group that does not exist yet
    439: Reason.MISSING_METADATA,  # no include
    440: Reason.MISSING_METADATA,
    441: Reason.MISSING_METADATA,
    442: Reason.SCHEMA,  # unicorn
    445: Reason.SCHEMA,  # count 0
    446: Reason.SCHEMA,
    447: Reason.MISSING_METADATA,  # no tag
    449: Reason.SCHEMA,  # no count
    450: Reason.SCHEMA,  # teal
}
NO_PROMPT = 448  # the originals want metadata.prompt, which plays no part


def scene_of(case: dict[str, Any], tag: str) -> Scene:
    found = case["detections"]
    numbers = np.array([one["box"] for one in found], np.float32).reshape(-1, 5)
    kept: dict[str, list[int]] = {}
    for name in {one["class"] for one in found}:
        own = np.array([i for i, one in enumerate(found) if one["class"] == name])
        order = kept_boxes(numbers[own, :4], numbers[own, 4], threshold=min_score(tag))
        if order:
            kept[name] = own[order].tolist()
    return Scene(numbers[:, :4], kept, {i: one["color"] for i, one in enumerate(found)})


def unchecked(metadata: dict[str, Any]) -> PromptMetadata:
    """What the originals accept and `parse_metadata` refuses."""
    clauses = [
        Clause.model_construct(
            name=one["class"],
            count=one["count"],
            color=one.get("color"),
            position=tuple(one["position"]) if "position" in one else None,
        )
        for one in metadata["include"]
    ]
    return PromptMetadata.model_construct(tag=metadata["tag"], include=clauses, exclude=[])


def check(case: dict[str, Any], metadata: PromptMetadata) -> None:
    scene = scene_of(case, metadata.tag)
    assert scene.kept == case["kept"]
    result = evaluate(metadata, scene)
    assert result.scores["official"] == case["official"]["correct"]
    assert result.scores["strict"] == case["server"]["strict_correct"]
    assert result.scores["flow_grpo"] == case["server"]["score"]
    assert 0 <= result.scores["soft"] <= 1
    for rule, wanted in [("official", case["official"]), ("strict", case["server"])]:
        failures = [one.get(f"{rule}_failure") for one in result.clauses]
        assert len([f for f in failures if f]) == len(wanted["reason"].splitlines())


@pytest.mark.parametrize("case", [c for c in CASES if c["id"] != NO_PROMPT], ids=lambda c: c["id"])
def test_scores_equal_the_originals(case):
    if case["id"] not in REFUSED:
        check(case, parse_metadata(case["metadata"]))
        return
    with pytest.raises(ItemFailure) as caught:
        parse_metadata(case["metadata"])
    assert caught.value.reason == REFUSED[case["id"]]


def test_the_prompt_is_not_needed():
    case = CASES[NO_PROMPT]
    metadata = parse_metadata(case["metadata"])
    assert evaluate(metadata, scene_of(case, metadata.tag)).scores["official"] == 1


@pytest.mark.parametrize("case", [c for c in CASES if c["id"] in (429, 442, 450)])
def test_the_arithmetic_of_refused_metadata_is_the_originals_too(case):
    check(case, unchecked(case["metadata"]))


def test_only_boxes_whose_color_can_matter_are_colored():
    for case in CASES:
        if case["id"] in REFUSED:
            continue
        metadata = parse_metadata(case["metadata"])
        scene = scene_of(case, metadata.tag)
        asked = boxes_to_color(metadata, scene.kept)
        fewer = Scene(scene.boxes, scene.kept, {i: scene.colors[i] for i in asked})
        assert evaluate(metadata, fewer) == evaluate(metadata, scene)


@pytest.mark.parametrize("case", BATCHES)
def test_the_published_answer_of_whole_calls(case):
    parsed = [parse_metadata(item["metadata"]) for item in case["items"]]
    scores = [
        evaluate(metadata, scene_of(item, metadata.tag)).scores
        for metadata, item in zip(parsed, case["items"], strict=True)
    ]
    tags = [metadata.tag for metadata in parsed]
    answer = published_answer(tags, scores, only_strict=case["only_strict"])
    assert answer == case["expect"]


CUP, DOG = [10, 10, 110, 110], [320, 10, 420, 110]


def soft(include: list[dict[str, Any]], boxes: dict[str, list[list[int]]], *colors: str) -> float:
    corners = [box for own in boxes.values() for box in own]
    numbers = iter(range(len(corners)))
    kept = {name: [next(numbers) for _ in own] for name, own in boxes.items()}
    scene = Scene(np.array(corners, np.float32).reshape(-1, 4), kept, dict(enumerate(colors)))
    return evaluate(parse_metadata({"tag": "any", "include": include}), scene).scores["soft"]


@pytest.mark.parametrize(
    ("found", "wanted", "value"),
    [(0, 1, 0.0), (1, 1, 1.0), (2, 1, 0.0), (16, 1, 0.0), (3, 4, 0.75), (5, 4, 0.75), (9, 4, 0.0)],
)
def test_soft_counts_are_the_papers_formula_clipped(found, wanted, value):
    assert soft([{"class": "cup", "count": wanted}], {"cup": [CUP] * found}) == value


def test_soft_gives_part_for_a_right_number_and_the_rest_for_color_and_place():
    red_cup = {"class": "cup", "count": 1, "color": "red"}
    assert soft([red_cup], {"cup": [CUP]}, "red") == 1
    assert soft([red_cup], {"cup": [CUP]}, "blue") == 0.5
    assert soft([red_cup], {"cup": [CUP, CUP]}, "red", "red") == 0
    assert soft([red_cup | {"count": 2}], {"cup": [CUP, CUP]}, "red", "blue") == 0.75
    cup, dog = {"class": "cup", "count": 1}, {"class": "dog", "count": 1}
    both = {"cup": [CUP], "dog": [DOG]}
    assert soft([cup, dog | {"position": ["right of", 0]}], both) == 1
    assert soft([cup, dog | {"position": ["left of", 0]}], both) == pytest.approx(2 / 3)
    assert soft([cup, dog | {"position": ["right of", 0]}], {"dog": [DOG]}) == pytest.approx(1 / 3)


def test_every_failed_clause_says_why():
    cup = {"class": "cup", "count": 1, "color": "red"}
    dog = {"class": "dog", "count": 1, "position": ["left of", 0]}
    cat = {"class": "cat", "count": 2}
    metadata = parse_metadata(
        {"tag": "any", "include": [cup, dog, cat], "exclude": [{"class": "dog", "count": 1}]}
    )
    scene = Scene(np.array([CUP, DOG], np.float32), {"cup": [0], "dog": [1]}, {0: "blue"})
    clauses = evaluate(metadata, scene).clauses
    assert [one["official_failure"] for one in clauses] == [
        "1 red cup expected, 1 blue found",
        "dog should be left of the objects of clause 0, which failed",
        "at least 2 cat expected, 0 found",
        "fewer than 1 dog expected, 1 found",
    ]
    assert clauses[0] == cup | {
        "found": 1,
        "official_failure": "1 red cup expected, 1 blue found",
        "strict_failure": "1 red cup expected, 1 blue found",
        "soft": [1.0, 0.0],
        "flow_grpo": [1.0, 0.0],
    }
    met = Scene(scene.boxes, scene.kept, {0: "red"})
    assert evaluate(metadata, met).clauses[1]["strict_failure"] == (
        "dog should be left of the target, but is right of it"
    )
    assert clauses[2]["strict_failure"] == "exactly 2 cat expected, 0 found"
