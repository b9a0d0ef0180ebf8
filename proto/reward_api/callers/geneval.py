"""GenEval scores in the form that flow_grpo's trainer reads (reward-server @ 92ac29f)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OTHER_TAG = -10.0
"""Stands in a group's list for images of another tag; the trainer filters it out."""

SUB_SCORES = frozenset({"flow_grpo", "official", "strict"})
"""What a GenEval service must tell of an image."""


def published_answer(
    tags: Sequence[str], scores: Sequence[Mapping[str, float]], *, only_strict: bool = False
) -> dict[str, Any]:
    """The five fields of the published server's answer.

    ``tags`` are the images' `metadata.tag`, ``scores`` their sub-scores. With ``only_strict`` the
    caller does not ask for the official answer, which is then 0.0 everywhere.
    """
    official = [0.0 if only_strict else one["official"] for one in scores]
    strict = [one["strict"] for one in scores]
    return {
        "scores": [one["flow_grpo"] for one in scores],
        "rewards": official,
        "strict_rewards": strict,
        "group_rewards": group_lists(tags, official),
        "group_strict_rewards": group_lists(tags, strict),
    }


def group_lists(tags: Sequence[str], values: Sequence[float]) -> dict[str, list[float]]:
    """For each of the six tags a list over all images: the value, or -10 under another tag. An
    image with none of the six is -10 in every list."""
    return {
        tag: [value if own == tag else OTHER_TAG for own, value in zip(tags, values, strict=True)]
        for tag in TAGS
    }
