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

# What may follow a complete number: 4, 4., 4 / 5, 4.5/5.0; not 4 of 42, 4.5.1, 4,5, 4e3 or 4 / 10.
_END_OF_NUMBER = re.compile(r"(?: */ *5(?:\.0+)?)?(?! */|[\d%]|[.,eE–-]\d)")


@dataclass(frozen=True, slots=True)
class Mark:
    """One number of an answer."""

    value: float
    """As the published reader reads it: 10 is 1, 5.9 is 5.9."""
    is_clean: bool
    """A whole number of the text, and within 1 to 5."""


def read_final_score(answer: str) -> dict[str, Mark]:
    """{"rating": mark} of the first "Final Score: x" (flow_grpo's unifiedreward); {} if none."""
    return _first(_FINAL_SCORE, answer)


def read_score_tag(answer: str) -> dict[str, Mark]:
    """{"rating": mark} of the first "<Score>n</Score>" (flow_grpo's qwenvl); {} if none."""
    return _first(_SCORE_TAG, answer)


def read_axes(answer: str) -> dict[str, Mark]:
    """Marks of "Alignment/Coherence/Style Score (1-5): x" (Pref-GRPO); of repeated lines the last
    counts, an axis without a number is left out."""
    return {match[1].lower(): _mark(match, 2) for match in _AXIS_SCORE.finditer(answer)}


def without_last_word(answer: str) -> str:
    """The answer less its last word: all that is certain when generation was cut off, since 4 may
    be the start of 4.5."""
    return re.sub(r"\S+\Z", "", answer)


def _first(pattern: re.Pattern[str], answer: str) -> dict[str, Mark]:
    match = pattern.search(answer)
    return {} if match is None else {RATING: _mark(match, 1)}


def _mark(match: re.Match[str], group: int) -> Mark:
    value = float(match[group])
    is_whole = _END_OF_NUMBER.match(match.string, match.end(group)) is not None
    return Mark(value, is_clean=is_whole and LOWEST <= value <= HIGHEST)
