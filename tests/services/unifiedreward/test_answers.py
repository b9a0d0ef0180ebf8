"""The readers against the published code's answers."""

import json
import re

import numpy as np
import pytest

from reward_services.unifiedreward.answers import (
    AXES,
    RATING,
    is_unfinished_thought,
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
                    stated = re.findall(rf"{axis.capitalize()} Score \(1-5\): ([\d.]+)", text)
                    assert marks[axis].is_clean == (len(set(map(float, stated))) == 1), text
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
        "4** out of 5",
        "4 (out of 5)",
        "4 of 5",
        "4/5\nFinal Score: 4.0",
        "4\n- 3 of the elements are missing",
        "4 to be fair",
        "4)",
        "4\nok",
        "4,",
        "4 (1-5)",
        "4 on a scale of 1 to 5",
        "4 on a scale from 1 to 5.",
        "4. The image has 2 dogs",
        "4!",
        "4...",
        "4/5 points",
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
        "4 out of 10",
        "4 (out of 10)",
        "4** out of 10",
        "4 stars out of 10",
        "4 of 10",
        "3 to 4",
        "3 or 4",
        "3 — 4",
        "4 percent",
        "4 %",
        "4½",
        "4+",
        "4-",
        "3 (4 if the sign is legible)",
        "4, maybe 5",
        "4 vs 5",
        "4 → 5",
        "4 on a scale of 10",
        "4 on a 1-10 scale",
        "4 (1-10 scale)",
        "4 out of ten",
        "4 of a possible 10",
        "4 per 10",
        "4\u00a0/ 10",
        "4 \u2044 10",
        "4\n/10",
        "3 or four",
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


SEVERAL = [
    'poster (object): 0\n"Final Score: 5" (text): 0\nFinal Score: 1',
    "<think>Final Score: 5? No, the colour is wrong.</think>\nFinal Score: 2",
    "Final Score: 4\n**Final Score**: 3",
    "Final Score: 4, or rather final score: 2",
    "Final Score: 5\nFinal Score: 10",
    "Final Score: 5\nFinal Score: -5",
    "The final score is 5.\nFinal Score: 2",
    "Final Score: 2\nthe final score would be four",
    "Final Score (out of 5): 5\nFinal Score: 2",
    "Final-Score: 5\nFinal Score: 2",
    "Final Scores: 5\nFinal Score: 2",
    "Final Score：4\nFinal Score: 2",
]


@pytest.mark.parametrize("answer", SEVERAL)
def test_an_answer_with_several_scores_is_not_clean(answer):
    """The first is still what the published reader finds."""
    mark = rating(answer)
    assert mark is not None
    assert not mark.is_clean


def test_a_tag_that_is_contradicted_is_not_clean():
    answer = "I would not give <Score>5</Score> here.</Thought><Score>2</Score>"
    mark = rating(answer, read_score_tag)
    assert mark is not None
    assert (mark.value, mark.is_clean) == (5, False)
    for other in (
        "<Score>5/10</Score>",
        "<Score>five</Score>",
        "&lt;Score&gt;5&lt;/Score&gt;",
        "<Score>5<Score>",
    ):
        mark = rating(f"{other} <Score>2</Score>", read_score_tag)
        assert mark is not None
        assert (mark.value, mark.is_clean) == (2, False), other
    for tail in (" out of 10", "/10", " of 8"):
        mark = rating(f"<Score>2</Score>{tail}", read_score_tag)
        assert mark is not None
        assert not mark.is_clean, tail
    again = rating("<Score>3</Score>, as said: <score> 3 </score>", read_score_tag)
    assert again is not None
    assert again.is_clean


def test_an_axis_that_is_contradicted_is_not_clean():
    text = "Alignment Score (1-5): {}\nCoherence Score (1-5): 4\nalignment score (1-5): 2"
    other = read_axes("Alignment: 5\nAlignment Score (1-5): 4")
    assert not other["alignment"].is_clean
    for first, is_clean in ((5, False), (2, True)):
        assert read_axes(text.format(first))["alignment"].is_clean is is_clean
        assert read_axes(text.format(first))["coherence"].is_clean


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [("<think>Final Score: 5", True), ("<think>a</think>Final Score: 5", False), ("5", False)],
)
def test_a_thought_without_an_end_is_no_verdict(answer, is_open):
    assert is_unfinished_thought(answer) is is_open
