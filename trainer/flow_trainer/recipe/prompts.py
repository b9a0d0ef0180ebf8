"""Prompt files, and which prompts an epoch trains on."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.sampling import Prompts

TEXT = ".txt"
JSON_LINES = (".jsonl", ".ndjson")
_TABLE_HEADER = re.compile(r'(?i)"?prompts?"?|"?(?:prompt|caption|text)s?"?[,;\t].*')
MARK_EVERY = 1024
"""Turns of the sources between two that are remembered."""


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What rewards read beside the text (GenEval's clauses)."""
    source: str = ""
    """Of a mixed run: which of [prompts.sources] it comes from."""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads `.txt` (a prompt per line) or `.jsonl` and `.ndjson` (`prompt`, and `metadata` or further
    keys, which then are the metadata). Blank lines are skipped; duplicates are kept: a group belongs
    to a position in the file, not to a text. Raises ConfigError with file and line, also for other
    suffixes and for a .txt that holds JSON: prompts are not guessed at."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (TEXT, *JSON_LINES):
        raise ConfigError(
            f"{path}: prompts come as .txt, a prompt per line, or as .jsonl (.ndjson), an object with "
            f'"prompt" per line; {suffix or "a file without a suffix"} is neither'
        )
    try:
        # not splitlines, which also breaks at U+2028 and the like inside a prompt
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ConfigError(
            f"cannot read prompts from {path}: no such file; correct [prompts], or write it "
            "(`flow-grpo prompts --help`)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read prompts from {path}: {error}") from None
    parse = _parse_json if suffix in JSON_LINES else _parse_text
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_checked(parse(line.strip())))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
        except RecursionError:
            raise ConfigError(f"{path}:{number}: nested too deeply") from None
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    if suffix == TEXT and _TABLE_HEADER.fullmatch(prompts[0].text):
        raise ConfigError(
            f"{path}: {prompts[0].text[:80]!r} is the header of a table, and a .txt has a prompt per "
            'line and nothing else; write the table as .jsonl, an object with "prompt" per line'
        )
    return prompts


def _parse_text(line: str) -> Prompt:
    if line.startswith(("{", "[")):
        try:
            is_json = isinstance(json.loads(line), (dict, list))
        except ValueError:
            is_json = False
        if is_json or line == "[":
            raise ValueError(
                'JSON in a .txt: name the file .jsonl, an object with "prompt" per line'
            )
    return Prompt(line)


def _checked(prompt: Prompt) -> Prompt:
    """Raises ValueError for a text that no file of prompts means."""
    if any("\ud800" <= character <= "\udfff" for character in prompt.text):
        raise ValueError("half of a surrogate pair: the text is no Unicode")
    return prompt


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value: leave it out, or write null")


def _parse_json(line: str) -> Prompt:
    row = json.loads(line, parse_constant=_not_json)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError('expected an object with a "prompt" string')
    metadata = row.get("metadata")
    if metadata is None:
        metadata = {key: value for key, value in row.items() if key != "prompt"}
    if not isinstance(metadata, dict):
        raise ValueError('"metadata" must be an object')
    return Prompt(row["prompt"], metadata)


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of texts and metadata in their order: the same prompts, wherever their file lies."""
    rows = [[prompt.text, dict(prompt.metadata)] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def read_split(prompts: Prompts, split: str) -> list[Prompt]:
    """All sources' prompts of a split (train, validation, heldout), one source after the other; empty
    when the recipe names no file. Raises ConfigError."""
    return [
        replace(prompt, source=source)
        for _, source, name, path in prompts.files()
        if name == split
        for prompt in read_prompts(path)
    ]


def mixed_epoch_prompts(
    prompts: Sequence[Prompt],
    weights: Mapping[str, float],
    prompts_per_epoch: int,
    epoch: int,
    seed: int,
) -> list[int]:
    """Indices into `prompts` of the epoch's prompts, from every source as many as its weight says,
    over the epochs exactly, and well mixed within one. Of one source: `epoch_prompts`. Raises
    ConfigError when an epoch needs more prompts of a source than there are."""
    if len(weights) == 1:
        return epoch_prompts(len(prompts), prompts_per_epoch, epoch, seed)
    places: dict[str, list[int]] = {name: [] for name in weights}
    for index, prompt in enumerate(prompts):
        places[prompt.source].append(index)
    before, turns = _turns(weights, epoch * prompts_per_epoch, prompts_per_epoch)
    chosen = {}
    for name, count in Counter(turns).items():
        if count > len(places[name]):
            raise ConfigError(
                f"prompts.sources.{name} has {len(places[name])} training prompts, and an epoch takes "
                f"{count} of them: lower its weight or sampling.prompts_per_epoch, or add prompts"
            )
        walked = walk(len(places[name]), count, before[name], f"{seed}/{name}")
        chosen[name] = iter([places[name][index] for index in walked])
    return [next(chosen[name]) for name in turns]


def _turns(weights: Mapping[str, float], start: int, count: int) -> tuple[Counter[str], list[str]]:
    """How many of the run's first `start` prompts come from each source, and which source each of the
    next `count` comes from: always the one that is the furthest behind its weight."""
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    marks = _marks(tuple(weights.items()))
    mark = min(start // MARK_EVERY, len(marks) - 1)
    taken = Counter(marks[mark])
    for number in range(mark * MARK_EVERY, start):
        taken[_turn(shares, taken, number)] += 1
        if (number + 1) % MARK_EVERY == 0:
            marks[(number + 1) // MARK_EVERY] = dict(taken)
    before, turns = taken.copy(), []
    for number in range(start, start + count):
        turns.append(_turn(shares, taken, number))
        taken[turns[-1]] += 1
    return before, turns


@cache
def _marks(weights: tuple[tuple[str, float], ...]) -> dict[int, dict[str, int]]:
    """What was taken of each source after k MARK_EVERY turns, by k: an epoch starts from the last one
    before it, however many epochs there were. Filled by `_turns`."""
    return {0: dict.fromkeys(dict(weights), 0)}


def _turn(shares: Mapping[str, float], taken: Mapping[str, int], number: int) -> str:
    return max(shares, key=lambda name: shares[name] * (number + 1) - taken[name])


def epoch_prompts(num_prompts: int, prompts_per_epoch: int, epoch: int, seed: int) -> list[int]:
    """Indices of the epoch's prompts, distinct, a pure function of (seed, epoch).

    The file is walked in passes, each in an order of its own, so all prompts are used about equally
    often: an epoch that spans two passes draws its rest from the next one, past what it already has.
    Raises ConfigError when an epoch needs more prompts than there are.
    """
    if prompts_per_epoch > num_prompts:
        raise ConfigError(
            f"sampling.prompts_per_epoch = {prompts_per_epoch} but there are only {num_prompts} "
            "training prompts: lower it, or add prompts"
        )
    return walk(num_prompts, prompts_per_epoch, epoch * prompts_per_epoch, seed)


def walk(num_prompts: int, count: int, position: int, seed: int | str) -> list[int]:
    """`count` distinct indices from `position` on in the passes over the prompts."""
    chosen: list[int] = []
    while len(chosen) < count:
        order = _pass_order(num_prompts, position // num_prompts, seed)
        start = position % num_prompts
        fresh = [index for index in order[start:] if index not in chosen]
        chosen += fresh[: count - len(chosen)]
        position += num_prompts - start
    return chosen


def _pass_order(num_prompts: int, number: int, seed: int | str) -> list[int]:
    order = list(range(num_prompts))
    random.Random(f"prompts/{seed}/{number}").shuffle(order)
    return order
