"""GenEval's prompts with the metadata that its reward reads (arXiv 2310.11513).

The benchmark's lines come out byte for byte, because the draws are made in the order of its own
generator (geneval @ af4902f) from the same numpy generator. The training mixture has flow_grpo's
proportions and leaves out every scene of the benchmark.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from flow_trainer.errors import ConfigError

BENCHMARK_SEED, BENCHMARK_SAMPLES = 43, 100

_CLASSES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
    zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
    kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
    fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
    cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote,
    computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
"""
CLASSES = tuple(name.strip() for name in _CLASSES.split(","))
"""In the detector's order."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
_MIRRORED = {0: 1, 1: 0, 2: 3, 3: 2}
_NUMBERS = {2: "two", 3: "three", 4: "four"}
"""The counts of the benchmark and of a training set."""
_WORDS = {**_NUMBERS, 5: "five", 6: "six", 12: "twelve"}
_COLORABLE = range(1, len(CLASSES))  # there are no colored persons

MIXTURE = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
"""Parts of a training set; single objects, which every model draws, have none."""


class Sample(NamedTuple):
    """What a prompt asks for, in numbers."""

    tag: str
    objects: tuple[int, ...]
    """Positions in CLASSES, in the order of the words."""
    details: tuple[int, ...] = ()
    """counting: how many; colors, color_attr: a color per object; position: the relation of the
    first object to the second."""


def benchmark(seed: int = BENCHMARK_SEED, samples: int = BENCHMARK_SAMPLES) -> list[dict[str, Any]]:
    """`samples` draws of each task but single_object (all classes), repeated ones left out: 553
    lines, the published ones, with the defaults. Raises ConfigError."""
    if samples < 1:
        raise ConfigError(f"{samples} samples of each task: ask for 1 or more")
    return [line(sample) for sample in _benchmark(seed, samples)]


def _benchmark(seed: int, samples: int) -> list[Sample]:
    rng = _generator(seed)
    order = rng.choice(len(CLASSES), size=len(CLASSES), replace=False)
    drawn = [Sample("single_object", (int(index),)) for index in order]
    for draw in (_two_object, _counting, _colors, _position, _color_attr):
        drawn += [draw(rng) for _ in range(samples)]
    return list(dict.fromkeys(drawn))


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ConfigError(f"seed {seed}: numpy's generator takes 0 and more")
    return np.random.default_rng(seed)


def _two_object(rng: np.random.Generator) -> Sample:
    return Sample("two_object", _integers(rng.choice(len(CLASSES), size=2, replace=False)))


def _counting(rng: np.random.Generator) -> Sample:
    index = int(rng.choice(len(CLASSES)))
    return Sample("counting", (index,), (int(rng.integers(2, 4, endpoint=True)),))


def _colors(rng: np.random.Generator) -> Sample:
    index = int(rng.choice(len(_COLORABLE))) + 1
    return Sample("colors", (index,), (int(rng.choice(len(COLORS))),))


def _position(rng: np.random.Generator) -> Sample:
    objects = _integers(rng.choice(len(CLASSES), size=2, replace=False))
    return Sample("position", objects, (int(rng.choice(len(RELATIONS))),))


def _color_attr(rng: np.random.Generator) -> Sample:
    objects = _integers(rng.choice(len(_COLORABLE), size=2, replace=False) + 1)
    return Sample("color_attr", objects, _integers(rng.choice(len(COLORS), size=2, replace=False)))


def _integers(drawn: np.ndarray) -> tuple[int, ...]:
    return tuple(drawn.tolist())


def line(sample: Sample) -> dict[str, Any]:
    """The metadata of a sample, its keys in the published order."""
    names = [CLASSES[index] for index in sample.objects]
    include: list[dict[str, Any]] = [{"class": name, "count": 1} for name in names]
    row: dict[str, Any] = {"tag": sample.tag, "include": include}
    words = [with_article(name) for name in names]
    if sample.tag == "counting":
        (count,) = sample.details
        include[0]["count"] = count
        row["exclude"] = [{"class": names[0], "count": count + 1}]
        words = [f"{_WORDS[count]} {plural(names[0])}"]
    elif sample.tag in ("colors", "color_attr"):
        colors = [COLORS[index] for index in sample.details]
        for clause, color in zip(include, colors, strict=True):
            clause["color"] = color
        words = [with_article(f"{c} {name}") for c, name in zip(colors, names, strict=True)]
    elif sample.tag == "position":
        relation = RELATIONS[sample.details[0]]
        include.reverse()  # the reference comes first, and is clause 0
        include[1]["position"] = [relation, 0]
        words = [f"{words[0]} {relation} {words[1]}"]
    row["prompt"] = f"a photo of {' and '.join(words)}"
    return row


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    """As the benchmark forms it: "skises", "sheeps"."""
    return name + ("es" if name.endswith("s") else "s")


def training(count: int, seed: int = BENCHMARK_SEED) -> list[dict[str, Any]]:
    """`count` shuffled lines in the proportions of MIXTURE, none of whose scenes the benchmark has.

    Of each task, prompts are drawn without replacement; a task with too few of them (counting has
    160) is gone through as often as need be, so that none comes more than once more often than
    another. Equal seeds give equal lines. Raises ConfigError.
    """
    if count < 1:
        raise ConfigError(f"a training set of {count} prompts: ask for 1 or more")
    rng = _generator(seed)
    tested = {scene(sample) for sample in _benchmark(BENCHMARK_SEED, BENCHMARK_SAMPLES)}
    rows: list[dict[str, Any]] = []
    for tag, number in shares(count).items():
        pool = [sample for sample in _POOLS[tag]() if scene(sample) not in tested]
        rounds = [rng.permutation(len(pool)) for _ in range(-(-number // len(pool)))]
        chosen = np.concatenate([np.empty(0, np.int64), *rounds])[:number]
        rows += [line(_reordered(pool[index], rng)) for index in chosen]
    return [rows[index] for index in rng.permutation(count)]


def shares(count: int) -> dict[str, int]:
    """`count` in the proportions of MIXTURE, in whole numbers, by largest remainders."""
    parts = sum(MIXTURE.values())
    whole = {tag: count * part // parts for tag, part in MIXTURE.items()}
    rest = sorted(MIXTURE, key=lambda tag: -(count * MIXTURE[tag] % parts))
    for tag in rest[: count - sum(whole.values())]:
        whole[tag] += 1
    return whole


def scene(sample: Sample) -> tuple[Any, ...]:
    """Equal for prompts that ask for the same picture: two objects in either order, "a left of b"
    and "b right of a"."""
    first, *second = sample.objects
    if not second or first < second[0]:
        return sample
    details = sample.details
    if sample.tag == "position":
        return Sample(sample.tag, sample.objects[::-1], (_MIRRORED[details[0]],))
    return Sample(sample.tag, sample.objects[::-1], details[::-1])


def _reordered(sample: Sample, rng: np.random.Generator) -> Sample:
    """Two objects in an order drawn; a relation is a prompt of its own either way."""
    if sample.tag in ("two_object", "color_attr") and rng.integers(2):
        return Sample(sample.tag, sample.objects[::-1], sample.details[::-1])
    return sample


def _two_objects() -> Iterator[Sample]:
    for pair in itertools.combinations(range(len(CLASSES)), 2):
        yield Sample("two_object", pair)


def _counts() -> Iterator[Sample]:
    for index, count in itertools.product(range(len(CLASSES)), _NUMBERS):
        yield Sample("counting", (index,), (count,))


def _colored() -> Iterator[Sample]:
    for index, color in itertools.product(_COLORABLE, range(len(COLORS))):
        yield Sample("colors", (index,), (color,))


def _positions() -> Iterator[Sample]:
    pairs = itertools.permutations(range(len(CLASSES)), 2)
    for pair, relation in itertools.product(pairs, range(len(RELATIONS))):
        yield Sample("position", pair, (relation,))


def _colored_pairs() -> Iterator[Sample]:
    pairs = itertools.combinations(_COLORABLE, 2)
    for pair, colors in itertools.product(pairs, itertools.permutations(range(len(COLORS)), 2)):
        yield Sample("color_attr", pair, colors)


_POOLS: dict[str, Callable[[], Iterator[Sample]]] = {
    "position": _positions,
    "counting": _counts,
    "color_attr": _colored_pairs,
    "colors": _colored,
    "two_object": _two_objects,
}
"""Every prompt that a task can have; two objects in one order."""
