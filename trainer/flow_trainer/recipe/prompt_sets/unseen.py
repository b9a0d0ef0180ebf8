"""GenEval prompts for what training never showed (Flow-GRPO, arXiv 2505.05470, section 5.3): objects
of 20 classes, and counts above four.

The published files are not in the paper's repository. These lines follow what is known of them: the
20 classes, the number of prompts of each task (256 in all), the counts of 5, 6 and 12. The draws are
ours, so the lines are not the published ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flow_trainer.recipe.prompt_sets.geneval import (
    BENCHMARK_SEED,
    CLASSES,
    COLORS,
    RELATIONS,
    Sample,
    line,
)

UNSEEN = (
    "apple",
    "baseball bat",
    "bed",
    "book",
    "bowl",
    "car",
    "clock",
    "cup",
    "dog",
    "elephant",
    "fire hydrant",
    "frisbee",
    "microwave",
    "skateboard",
    "skis",
    "toilet",
    "toothbrush",
    "traffic light",
    "umbrella",
    "wine glass",
)
TASKS = {
    "single_object": 20,
    "two_object": 48,
    "counting": 47,
    "colors": 47,
    "position": 47,
    "color_attr": 47,
}
"""Prompts of each task; the published set has each four times."""
COUNTS = (5, 6, 12)


def objects(seed: int = BENCHMARK_SEED) -> list[dict[str, Any]]:
    """256 different lines about the 20 classes; equal seeds give equal lines."""
    rng = np.random.default_rng(seed)
    rows = []
    for tag, number in TASKS.items():
        pool = _pool(tag)
        rows += [line(pool[index]) for index in rng.permutation(len(pool))[:number]]
    return rows


def counting() -> list[dict[str, Any]]:
    """5, 6 and 12 objects of each of the 80 classes: 240 lines."""
    pairs = itertools.product(COUNTS, range(len(CLASSES)))
    return [line(Sample("counting", (index,), (count,))) for count, index in pairs]


def _pool(tag: str) -> list[Sample]:
    """Every prompt that a task can have; two objects in one order, a relation in both."""
    own = [CLASSES.index(name) for name in UNSEEN]
    singles = [(index,) for index in own]
    pairs = list(itertools.combinations(own, 2))
    colors = range(len(COLORS))
    made: dict[str, tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]] = {
        "single_object": (singles, [()]),
        "two_object": (pairs, [()]),
        "counting": (singles, [(count,) for count in (2, 3, 4)]),
        "colors": (singles, [(color,) for color in colors]),
        "position": (
            list(itertools.permutations(own, 2)),
            [(relation,) for relation in range(len(RELATIONS))],
        ),
        "color_attr": (pairs, list(itertools.permutations(colors, 2))),
    }
    return [Sample(tag, items, details) for items, details in itertools.product(*made[tag])]
