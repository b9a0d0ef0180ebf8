"""The readers against the published code's answers."""

import json

import numpy as np
import pytest

from reward_services.unifiedreward.answers import (
    AXES,
    RATING,
    read_axes,
    read_final_score,
    read_score_tag,
    without_last_word,
)

READERS = {
    "unifiedreward_flow_grpo.json": read_final_score,
    "qwenvl_reader.json": read_score_tag,
}


def rating(text, read=read_final_score):
    return read(text).get(RATING)


@pytest.mark.parametrize("name", READERS)
def test_every_published_score_is_read_to_the_last_bit(golden, name):
    """Where the original says 0 because it found nothing, there is no mark. A 0 that the answer
    gives (only <Score>0</Score> can) is a mark."""
    for case in json.loads((golden / name).read_text())["cases"]:
        mark = rating(case["text"], READERS[name])
        if mark is None:
            assert case["score"] == 0, case
        else:
            assert mark.value / 5 == case["score"], case
            assert case["score"] > 0 or case["text"] == "<Score>0</Score>"


def test_every_published_axis_is_read_and_none_is_made_up(golden):
    """The original fills a missing axis with the mean of its batch-mates, or 0."""
    count = 0
    for case in json.loads((golden / "unifiedreward_acs.json").read_text())["cases"]:
        for index, text in enumerate(case["texts"]):
            marks = read_axes(text)
            for axis in AXES:
                says_it = text.count(f"{axis.capitalize()} Score (1-5): ") > 0 and (
                    f"{axis.capitalize()} Score (1-5): nan" not in text
                )
                assert (axis in marks) == says_it, text
                if says_it:
                    assert np.float32(marks[axis].value) == case[axis][index], text
                    assert marks[axis].is_clean
                    count += 1
    assert count > 200


@pytest.mark.parametrize(
    "number",
    [
        "4",
        "4.",
        "4.25",
        "1",
        "5",
        "5.0",
        "4/5",
        "4 / 5",
        "4.5/5.0",
        "4 out of 5",
        "4)",
        "4\nok",
        "4,",
    ],
)
def test_clean_numbers(number):
    mark = rating(f"Final Score: {number}")
    assert mark is not None
    assert mark.is_clean


@pytest.mark.parametrize(
    "number",
    [
        "10",
        "55",
        "5.9",
        "1e3",
        "3,5",
        "4.5.1",
        "4/10",
        "4 / 10",
        "4/50",
        "4/5.5",
        "40%",
        "3-4",
        "3–4",
        "5.0001",
    ],
)
def test_broken_numbers_are_read_as_published_and_not_clean(number):
    mark = rating(f"Final Score: {number}")
    assert mark is not None
    assert not mark.is_clean


@pytest.mark.parametrize(
    ("number", "is_clean"), [("0", False), ("1", True), ("5", True), ("9", False)]
)
def test_a_tag_is_clean_within_the_grades(number, is_clean):
    mark = rating(f"<Score>{number}</Score>5", read_score_tag)
    assert mark is not None
    assert mark.is_clean is is_clean


def test_an_axis_off_the_scale_is_not_clean():
    marks = read_axes("Alignment Score (1-5): 0.5\nCoherence Score (1-5): 10\nStyle Score (1-5): 2")
    assert {axis: mark.is_clean for axis, mark in marks.items()} == {
        "alignment": False,
        "coherence": False,
        "style": True,
    }


def test_only_whole_words_name_an_axis():
    assert read_axes("MisAlignment Score (1-5): 3 Beauty Score (1-5): 4") == {}


@pytest.mark.parametrize(
    ("answer", "rest"), [("Final Score: 4", "Final Score: "), ("one\ntwo ", "one\ntwo "), ("", "")]
)
def test_the_last_word_of_a_cut_answer_is_not_trusted(answer, rest):
    assert without_last_word(answer) == rest
