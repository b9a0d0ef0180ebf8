"""What a judge's answer says: pure readers from text to marks on the scale from 1 to 5.

Each reader finds what the published code finds, digit for digit, and also says whether the number is
clean. Where the published code calls an answer it cannot read 0, there is simply no mark here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LOWEST, HIGHEST = 1.0, 5.0

RATING = "rating"
AXES = ("alignment", "coherence", "style")

# flow_grpo @ 9745241 and Pref-GRPO @ 3e787f6: the patterns of the published readers.
_FINAL_SCORE = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)")
_SCORE_TAG = re.compile(r"<Score>(\d+)</Score>")
_AXIS_SCORE = re.compile(r"\b(Alignment|Coherence|Style) Score \(1-5\):\s*([0-5](?:\.\d+)?)")

# Every place where an answer states a score, as loosely as a person would take it: an echoed caption,
# a line of reasoning and the verdict all count. One that contradicts the others spoils the reading.
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STATED = rf"([-−]?\d+(?:\.\d+)?|{'|'.join(_WORDS)})\b"
# Bounded, so that a judge's endless line of blanks costs no more than its length.
_SCALE_OR_NOTE = r"(?:\s{0,4}\([^()\n]{0,24}\))?"
_VERB = r"(?:[\W_]{0,8}?(?:is|was|of|would be|equals)\b)?[\W_]{0,24}?"
_ANY_FINAL_SCORE = re.compile(rf"(?i)final[\W_]{{0,8}}scores?{_SCALE_OR_NOTE}{_VERB}{_STATED}")
# Whatever stands in a tag, also one that is escaped, or closed by another opening.
_ANY_SCORE_TAG = re.compile(
    r"(?i)(?:<|&lt;) ?score ?(?:>|&gt;)\s{0,8}([^<&\n]{0,40}?)\s{0,8}(?:<|&|\n|\Z)"
)
_ANY_AXIS_SCORE = re.compile(
    rf"(?i)\b(alignment|coherence|style)(?:[\W_]{{0,8}}scores?{_SCALE_OR_NOTE}{_VERB}"
    rf"|{_SCALE_OR_NOTE}[\s*_]{{0,8}}[:=：][\s*_]{{0,8}}){_STATED}"
)

# What may follow a complete number in its sentence: 4, 4., 4 / 5, 4 out of 5.0, 4 (1-5), 4 to be fair. What
# may not: 4 of 42, 4.5.1, 4,5, 4e3, 4 / 10, 4 out of ten, 3 to 4, 3 (4 if it is legible), 4 on a scale of
# 10, 40 percent.
_SAME_LINE = r"[ \t\u00a0*_()\[\]\"']*"
_OF = r"(?:(?:stars?|points?) *)?(?:/|⁄|out +of|of|on +a +scale +(?:of|from))"
_OUT_OF_FIVE = re.compile(
    rf"{_SAME_LINE}(?:{_OF}{_SAME_LINE}(?:1 *(?:[-–]|to) *)?|1 *[-–] *)5(?:\.0+)?(?!\d)"
)
_SENTENCE = re.compile(r"[^\n.;!?]*")
_NO_END = re.compile(
    rf"[ \t]*%|[+½⅓⅔¼¾-]|[.,eE–]\d|\s*(?:/|⁄|∕|÷)|{_SAME_LINE}percent\b"
    rf"|[^\n.;!?]*\b(?:of|possible|to|or|and|than|vs|versus|scale|maybe)\s+(?:{'|'.join(_WORDS)}|half|hundred)\b"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """One number of an answer."""

    value: float
    """As the published reader reads it: 10 is 1, 5.9 is 5.9."""
    is_clean: bool
    """A whole number of the text, within 1 to 5, and the only one that the answer states."""


def read_final_score(answer: str) -> dict[str, Mark]:
    """{"rating": mark} of the first "Final Score: x" (flow_grpo's unifiedreward); {} if none."""
    return _first(_FINAL_SCORE, answer, _ANY_FINAL_SCORE)


def read_score_tag(answer: str) -> dict[str, Mark]:
    """{"rating": mark} of the first "<Score>n</Score>" (flow_grpo's qwenvl); {} if none."""
    return _first(_SCORE_TAG, answer, _ANY_SCORE_TAG)


def read_axes(answer: str) -> dict[str, Mark]:
    """Marks of "Alignment/Coherence/Style Score (1-5): x" (Pref-GRPO); of repeated lines the last
    counts, and is not clean when they differ. An axis without a number is left out."""
    stated: dict[str, set[str]] = {}
    for axis, number in _ANY_AXIS_SCORE.findall(answer):
        stated.setdefault(axis.lower(), set()).add(_canonical(number))
    return {
        match[1].lower(): _mark(match, 2, stated.get(match[1].lower(), set()))
        for match in _AXIS_SCORE.finditer(answer)
    }


def is_unfinished_thought(answer: str) -> bool:
    """Whether the answer ends inside a block of reasoning: a number in it is no verdict."""
    return answer.rfind("<think>") > answer.rfind("</think>")


def without_last_word(answer: str) -> str:
    """The answer less its last word: all that is certain when generation was cut off, since 4 may
    be the start of 4.5."""
    return re.sub(r"\S+\Z", "", answer)


def _first(pattern: re.Pattern[str], answer: str, loosely: re.Pattern[str]) -> dict[str, Mark]:
    match = pattern.search(answer)
    stated = {_canonical(number) for number in loosely.findall(answer)}
    return {} if match is None else {RATING: _mark(match, 1, stated)}


def _mark(match: re.Match[str], group: int, stated: set[str]) -> Mark:
    """`stated`: every number that the answer gives for this mark."""
    value = float(match[group])
    is_whole = _is_whole(match.string, match.end(), in_tag=match.end() > match.end(group))
    is_clean = is_whole and LOWEST <= value <= HIGHEST and len(stated) <= 1
    return Mark(value, is_clean)


def _is_whole(answer: str, end: int, *, in_tag: bool = False) -> bool:
    """Whether nothing in the rest of its sentence makes the number that ends there another one: a
    second number, "out of 10", a plus. After a closing tag only what relates to the number counts."""
    of_five = _OUT_OF_FIVE.match(answer, end)
    end = of_five.end() if of_five else end
    if _NO_END.match(answer, end):
        return False
    if in_tag:
        return re.compile(rf"{_SAME_LINE}{_OF}{_SAME_LINE}\d").match(answer, end) is None
    sentence = _SENTENCE.match(answer, end)
    assert sentence is not None
    return not any(character.isdigit() for character in sentence[0])


def _canonical(number: str) -> str:
    """One spelling for a value; what is no number stays itself."""
    text = number.strip().lower().replace("−", "-")
    if text in _WORDS:
        text = str(_WORDS.index(text))
    try:
        return format(float(text), "g")
    except ValueError:
        return text
