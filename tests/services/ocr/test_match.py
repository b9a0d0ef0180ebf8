"""The reward's arithmetic, against flow_grpo's own answers and a plain edit distance."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_api.errors import ItemFailure, Reason
from reward_services.ocr.engine import Line
from reward_services.ocr.match import levenshtein, normalize, sub_scores, target_text
from reward_services.ocr.scorer import joined_text

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ocr_reward.json").read_text())
CASES = {case["id"]: case for case in GOLDEN["cases"]}
SCORED = [
    case
    for case in CASES.values()
    if case["recognized"] != "RAISE" and isinstance(case["reward"], float)
]


def golden_scores(case: dict) -> dict[str, float]:
    lines = [Line(text, confidence, ()) for text, confidence in case["recognized"] or []]
    # The golden confidences have passed PaddleOCR's own threshold already.
    return sub_scores(joined_text(lines, min_confidence=0.0), target_text(case["prompt"]))


def test_flow_grpo_and_similarity_equal_the_original_to_the_digit():
    assert len(SCORED) == 362
    for case in SCORED:
        scores = golden_scores(case)
        assert scores["flow_grpo"] == case["reward"], case
        # flow_grpo's video scorer has no substring rule: on one image it is the paper's formula.
        assert scores["similarity"] == case["video_or_image_reward_on_one_image"], case


def test_golden_batches_give_the_same_scores_item_by_item():
    for batch in GOLDEN["batches"]:
        if not isinstance(batch["expect"], list):
            continue
        items = zip(batch["prompts"], batch["recognized"], batch["expect"], strict=True)
        for prompt, recognized, reward in items:
            if recognized != "RAISE":
                case = {"prompt": prompt, "recognized": recognized}
                assert golden_scores(case)["flow_grpo"] == reward


@pytest.mark.parametrize("case_id", [349, 350, 351, 352, 353, 357, 358])
def test_a_prompt_without_target_is_an_item_error_where_the_original_loses_the_batch(case_id):
    with pytest.raises(ItemFailure) as caught:
        target_text(CASES[case_id]["prompt"])
    assert caught.value.reason == Reason.PROMPT_TARGET
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "Hello World" on a wall', "Hello World"),
        ('"one" and "two"', "one"),
        ('an open "quote to the end', "quote to the end"),
        ("\"It's 5 o'clock\"", "It's 5 o'clock"),
        ('"café"', "café"),
        ('"\t"', "\t"),  # only blanks are removed: the original has a score for this
        ('"\u00a0"', "\u00a0"),
    ],
)
def test_the_target_is_the_first_quoted_text(prompt, target):
    assert target_text(prompt) == target


@pytest.mark.parametrize(
    "prompt", ["", "no quote", "“typographic”", '""', '"  "', 'ends with "', 'or with " ']
)
def test_a_prompt_without_anything_to_show_is_refused(prompt):
    with pytest.raises(ItemFailure, match="quote"):
        target_text(prompt)


def test_normalisation_removes_ascii_blanks_and_case_only():
    assert normalize(" He Llo\t\u00a0É!") == "hello\t\u00a0é!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HELLO", {"flow_grpo": 1.0, "similarity": 1.0, "exact": 1.0}),
        ("hel lo", {"flow_grpo": 1.0, "similarity": 1.0, "exact": 1.0}),
        ("oh HELLO", {"flow_grpo": 1.0, "similarity": 0.6, "exact": 0.0}),
        ("HELP", {"flow_grpo": 0.6, "similarity": 0.6, "exact": 0.0}),
        ("something else", {"flow_grpo": 0.0, "similarity": 0.0, "exact": 0.0}),
        ("", {"flow_grpo": 0.0, "similarity": 0.0, "exact": 0.0}),
    ],
)
def test_sub_scores(text, expected):
    assert sub_scores(text, "Hello") == pytest.approx(expected)


def test_lines_are_joined_in_order_without_the_unsure_ones():
    lines = [Line("Open", 0.9, ()), Line("?", 0.49, ()), Line("Tea", 0.5, ()), Line("x", 0.0, ())]
    assert joined_text(lines, 0.5) == "OpenTea"
    assert joined_text(lines, 0.0) == "Open?Tea"
    assert joined_text([], 0.5) == ""


def plain_levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@given(st.text("abcé☃", max_size=80), st.text("abcé☃", max_size=80))
def test_levenshtein_equals_the_plain_table(a, b):
    assert levenshtein(a, b) == plain_levenshtein(a, b) == levenshtein(b, a)
