"""From the objects found in an image to the sub-scores. Pure; README.md has the definitions.

`official` is the benchmark's answer (geneval @ af4902f); `strict` and `flow_grpo` are those of the
published reward server (reward-server @ 92ac29f); `soft` is the paper's formula (arXiv 2505.05470,
section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from reward_services.geneval.boxes import relations
from reward_services.geneval.prompt_metadata import Clause, Exclusion, PromptMetadata


@dataclass(frozen=True, slots=True)
class Scene:
    """What was found in an image."""

    boxes: np.ndarray
    """(n, 4) float32 of all detections."""
    kept: Mapping[str, Sequence[int]]
    """Per class the indices of the boxes that count, surest first; classes without any may be
    absent."""
    colors: Mapping[int, str]
    """The color of the boxes that `boxes_to_color` asks for, by index."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one include clause fares: with at least `count` objects, or with exactly `count`."""

    found: int
    """Boxes of the class that count."""
    boxes: tuple[int, ...] = ()
    """The boxes that meet the clause; none when it failed."""
    right_color: int | None = None
    """How many have the color; None when not asked, or when the number was wrong."""
    position: Literal["right", "wrong", "no target"] | None = None
    """None when not asked, or when number or color were wrong."""
    failure: str = ""
    """What is wrong; empty when the clause is met."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    scores: dict[str, float]
    clauses: list[dict[str, Any]]
    """Per include clause, then per exclude clause: what was asked and found, why it failed."""


def boxes_to_color(metadata: PromptMetadata, kept: Mapping[str, Sequence[int]]) -> list[int]:
    """The boxes whose color decides something: the surest `count` of each clause with a color that
    has enough objects."""
    asked: set[int] = set()
    for clause in metadata.include:
        found = kept.get(clause.name, ())
        if clause.color and len(found) >= clause.count:
            asked.update(found[: clause.count])
    return sorted(asked)


def evaluate(metadata: PromptMetadata, scene: Scene) -> Evaluation:
    """All four sub-scores of an image and the reasons."""
    official = verdicts(metadata.include, scene, exact=False)
    strict = verdicts(metadata.include, scene, exact=True)
    included = [_report(*row) for row in zip(metadata.include, official, strict, strict=True)]
    excluded = [_exclusion_report(exclusion, scene) for exclusion in metadata.exclude]
    reports = included + excluded
    scores = {
        "official": float(not any(report["official_failure"] for report in reports)),
        "strict": float(not any(report["strict_failure"] for report in included)),
        "soft": _mean([report["soft"] for report in included]),
        "flow_grpo": _mean([report["flow_grpo"] for report in included]),
    }
    return Evaluation(scores, reports)


def _report(clause: Clause, official: Verdict, strict: Verdict) -> dict[str, Any]:
    return {
        **clause.model_dump(by_alias=True, exclude_none=True, mode="json"),
        "found": strict.found,
        "official_failure": official.failure,
        "strict_failure": strict.failure,
        "soft": soft_values(clause, strict),
        "flow_grpo": flow_grpo_values(clause, strict),
    }


def _exclusion_report(exclusion: Exclusion, scene: Scene) -> dict[str, Any]:
    found = len(scene.kept.get(exclusion.name, ()))
    too_many = found >= exclusion.count
    failure = f"fewer than {exclusion.count} {exclusion.name} expected, {found} found"
    return {
        "exclude": True,
        **exclusion.model_dump(by_alias=True),
        "found": found,
        "official_failure": failure if too_many else "",
    }


def verdicts(clauses: Sequence[Clause], scene: Scene, *, exact: bool) -> list[Verdict]:
    """One verdict per clause, in order, because a position looks back at an earlier clause.

    exact: the number of objects must be `count`; else at least `count`, and the surest are taken.
    """
    done: list[Verdict] = []
    for clause in clauses:
        done.append(_verdict(clause, scene, done, exact=exact))
    return done


def _verdict(clause: Clause, scene: Scene, earlier: Sequence[Verdict], *, exact: bool) -> Verdict:
    everything = scene.kept.get(clause.name, ())
    found = len(everything)
    if found < clause.count or (exact and found > clause.count):
        bound = "exactly" if exact else "at least"
        failure = f"{bound} {clause.count} {clause.name} expected, {found} found"
        return Verdict(found, failure=failure)
    boxes = tuple(everything[: clause.count])
    right_color = None
    if clause.color:
        colors = Counter(scene.colors[index] for index in boxes)
        right_color = colors[clause.color]
        if right_color < clause.count:
            seen = ", ".join(f"{number} {color}" for color, number in colors.most_common())
            failure = f"{clause.count} {clause.color} {clause.name} expected, {seen} found"
            return Verdict(found, right_color=right_color, failure=failure)
    if clause.position is None:
        return Verdict(found, boxes, right_color)
    relation, group = clause.position
    targets = earlier[group].boxes
    if not targets:
        failure = f"{clause.name} should be {relation} the objects of clause {group}, which failed"
        return Verdict(found, right_color=right_color, position="no target", failure=failure)
    misplaced = _misplaced(relation, scene.boxes, boxes, targets)
    if misplaced:
        failure = f"{clause.name} should be {relation} the target, but {misplaced}"
        return Verdict(found, right_color=right_color, position="wrong", failure=failure)
    return Verdict(found, boxes, right_color, "right")


def _misplaced(
    relation: str, corners: np.ndarray, boxes: Sequence[int], targets: Sequence[int]
) -> str:
    """What the first pair without the relation shows instead; empty when there is none."""
    for index, target in product(boxes, targets):
        seen = relations(corners[index], corners[target])
        if relation not in seen:
            return f"is {' and '.join(sorted(seen))} it" if seen else "lies in no direction from it"
    return ""


def flow_grpo_values(clause: Clause, strict: Verdict) -> list[float]:
    """What a clause adds to the list whose mean is the published training reward.

    The number's value is not bounded below (-14 with 16 objects instead of one), and a wrong
    relation adds 0 and then 1, so that it costs half: both are the published code's.
    """
    values = [1 - abs(clause.count - strict.found) / clause.count]
    if strict.found != clause.count:
        return [*values, 0.0] if clause.color or clause.position else values
    if strict.right_color is not None:
        values.append(1 - abs(clause.count - strict.right_color) / clause.count)
    if strict.position is not None:
        values += {"right": [1.0], "no target": [0.0], "wrong": [0.0, 1.0]}[strict.position]
    return values


def soft_values(clause: Clause, strict: Verdict) -> list[float]:
    """One value in [0, 1] for each thing that the clause asks for; the mean over all is `soft`.

    Number: max(1 - |found - count| / count, 0). Color: the share of the objects that have it, 0
    when the number is wrong. Position: 1 when every pair of objects shows the relation, 0 when not
    or when number, color or the clause it refers to failed.
    """
    values = [max(1 - abs(strict.found - clause.count) / clause.count, 0.0)]
    if clause.color:
        values.append((strict.right_color or 0) / clause.count)
    if clause.position:
        values.append(float(strict.position == "right"))
    return values


def _mean(lists: Sequence[Sequence[float]]) -> float:
    """Of all values of all lists, added in order."""
    values = [value for one in lists for value in one]
    return sum(values) / len(values)
