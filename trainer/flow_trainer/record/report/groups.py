"""Runs of one recipe with several seeds are one group: what they are called, and how they differ."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flow_trainer.recipe.changes import changed_keys
from flow_trainer.recipe.recipe import Recipe
from flow_trainer.record.report.runs import RunRecord

PLACE = ("seed", "device", "logging.", "checkpoints.", "parallel.")
"""What may differ between runs of one recipe: the seed, and where and how a run goes about it."""
PLACE_OF_REWARD = (".url", ".token_env")
SHOWN_DIFFERENCES = 2
"""In a label."""


@dataclass(frozen=True)
class Group:
    """Runs whose recipes differ only in the seed and in where they ran, by seed."""

    label: str
    style: int
    """Counts from 0; chooses colour and dashes."""
    runs: Sequence[RunRecord]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def seeds(self) -> list[int]:
        return [run.recipe.seed for run in self.runs]


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of the recipe that is not the same in all groups."""

    key: str
    values: Sequence[str]
    """One per group."""


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """In the order of their first runs."""
    found: list[list[RunRecord]] = []
    for run in runs:
        for members in found:
            if not recipe_changes(members[0].recipe, run.recipe):
                members.append(run)
                break
        else:
            found.append([run])
    labels = _labels(found)
    return [
        Group(label, style, sorted(members, key=lambda run: run.recipe.seed))
        for style, (label, members) in enumerate(zip(labels, found, strict=True))
    ]


def recipe_changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """What differs, without the seed and the place."""
    return {key: values for key, values in changed_keys(before, now).items() if not _is_place(key)}


def differences(groups: Sequence[Group]) -> list[Difference]:
    """In the order of the recipe's sections."""
    first = groups[0].recipe
    changes = [recipe_changes(first, group.recipe) for group in groups]
    known = dict.fromkeys(key for change in changes for key in change)
    originals = {key: values[0] for change in changes for key, values in change.items()}
    sections = [*type(first).model_fields]
    keys = sorted(known, key=lambda key: sections.index(key.partition(".")[0]))
    partial = [name for name in _reward_names(groups) if not _all_have(groups, name)]
    found = [
        Difference(
            key,
            _short(change[key][1] if key in change else originals[key] for change in changes),
        )
        for key in keys
        if not key.startswith(tuple(f"rewards.{name}." for name in partial))
    ]
    place = sum(
        sections.index(row.key.partition(".")[0]) < sections.index("rewards") for row in found
    )
    found[place:place] = [
        Difference(f"rewards.{name}", [_part_of(group.recipe, name) for group in groups])
        for name in partial
    ]
    return found


def scores_differ_by(groups: Sequence[Group]) -> list[str]:
    """Why scores of these recipes are not of one kind: what each has, where that is not the same."""
    found = []
    for what, of in (
        ("trained rewards", lambda r: ", ".join(sorted(r.trained))),
        ("held-out prompts", lambda r: r.prompts.heldout or ""),
        ("validation prompts", lambda r: r.prompts.validation or ""),
        ("evaluation steps", lambda r: r.evaluation.num_steps),
    ):
        values = _short(dict.fromkeys(of(group.recipe) for group in groups))
        if len(values) > 1:
            found.append(f"{what} ({'; '.join(value or 'none' for value in values)})")
    return found


def _reward_names(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.recipe.rewards))


def _all_have(groups: Sequence[Group], reward: str) -> bool:
    return all(reward in group.recipe.rewards for group in groups)


def _part_of(recipe: Recipe, reward: str) -> str:
    """What a reward is in a recipe."""
    found = recipe.rewards.get(reward)
    if found is None:
        return "–"
    return "monitor" if found.monitor else f"weight {found.weight:g}"


def _short(values: Iterable[Any]) -> list[str]:
    """As shown; files of one folder by their names in it."""
    texts = [shown(value) for value in values]
    paths = [text for text in texts if text.startswith("/")]
    if len(paths) < 2:
        return texts
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(text, common) if text in paths else text for text in texts]


def shown(value: Any) -> str:
    """A value of a recipe, much as TOML has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_place(key: str) -> bool:
    if key.startswith("rewards."):
        return key.endswith(PLACE_OF_REWARD)
    return key.startswith(PLACE[2:]) or key in PLACE[:2]


def _labels(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Folders are named by people: a group's name is that of its folders without the seed, if it is one,
    else the recipe's. Where two groups would have the same, what differs follows, and a number where
    that is not enough."""
    labels = _numbered_apart(groups, [_folder_name(runs) for runs in groups])
    times, seen = Counter(labels), Counter[str]()
    for number, label in enumerate(labels):
        seen[label] += 1
        if times[label] > 1:
            labels[number] = f"{label} ({seen[label]})"
    return labels


def _folder_name(runs: Sequence[RunRecord]) -> str:
    names = {
        run.folder.resolve().name.removesuffix(str(run.recipe.seed)).rstrip("-_. ") for run in runs
    }
    return names.pop() or runs[0].recipe.name if len(names) == 1 else runs[0].recipe.name


def _numbered_apart(groups: Sequence[Sequence[RunRecord]], names: list[str]) -> list[str]:
    """Adds to names that occur twice what distinguishes their recipes."""
    times = Counter(names)
    recipes = [runs[0].recipe for runs in groups]
    labels = []
    for name, recipe in zip(names, recipes, strict=True):
        rivals = [other for rival, other in zip(names, recipes, strict=True) if rival == name]
        changed = dict.fromkeys(
            key for other in rivals for key in recipe_changes(other, recipe) if times[name] > 1
        )
        own = {key: _value_at(recipe, key) for key in list(changed)[:SHOWN_DIFFERENCES]}
        said = ", ".join(f"{key.rpartition('.')[2]} = {shown(v)}" for key, v in own.items())
        labels.append(f"{name}: {said}" if said else name)
    return labels


def _value_at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.model_dump()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
