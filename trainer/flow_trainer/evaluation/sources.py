"""A suite's prompts: made here, from a file, or from a Hugging Face data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_trainer.dataset.hub import HUB, load_hub_rows, parse_hub
from flow_trainer.dataset.pairs import CAPTIONS
from flow_trainer.errors import ConfigError
from flow_trainer.evaluation.suites import SUITES, Suite
from flow_trainer.recipe.prompts import Prompt, read_prompts


def parse_sources(texts: list[str]) -> dict[str, str]:
    """`--prompts SUITE=SOURCE`, by suite. Raises ConfigError."""
    sources = {}
    for text in texts:
        name, separator, source = text.partition("=")
        if not separator or not source or name not in SUITES:
            raise ConfigError(
                f"--prompts {text}: write SUITE=FILE or SUITE=hf:OWNER/NAME@SPLIT#COLUMN, with one of "
                f"{', '.join(SUITES)}"
            )
        sources[name] = source
    return sources


def suite_prompts(suite: Suite, source: str | None) -> list[Prompt]:
    """The suite's prompts, each once and in their order: a file that repeats them, as the published
    ones do, says nothing that `images_per_prompt` does not. Raises ConfigError."""
    if source is None and suite.make is None:
        raise ConfigError(
            f"suite {suite.name} reads its prompts: pass --prompts {suite.name}=FILE with "
            f"{suite.where}"
        )
    if source is None:
        assert suite.make is not None
        prompts = suite.make()
    elif source.startswith(HUB):
        prompts = _from_hub(source.removeprefix(HUB))
    else:
        prompts = read_prompts(source)
    distinct = {_key(prompt): prompt for prompt in reversed(prompts)}
    kept = list(reversed(distinct.values()))
    if suite.groups:
        _check_groups(suite, kept, source)
    return kept


def _key(prompt: Prompt) -> str:
    return json.dumps([prompt.text, dict(prompt.metadata)], sort_keys=True)


def _check_groups(suite: Suite, prompts: list[Prompt], source: str | None) -> None:
    known = {group.key for group in suite.groups}
    for number, prompt in enumerate(prompts, 1):
        try:
            group = suite.group_of(prompt)
        except (KeyError, IndexError, TypeError, ValueError):
            group = ""
        if group not in known:
            raise ConfigError(
                f"{source}: prompt {number}, {prompt.text!r}, has no GenEval metadata of "
                f"{', '.join(sorted(known))}; write such lines with `flow-grpo prompts geneval`"
            )


def _from_hub(text: str) -> list[Prompt]:
    """OWNER/NAME@SPLIT#COLUMN; the split is `test` and the column found by its name where not said."""
    name, split, column = parse_hub(text)
    rows = load_hub_rows(name, split or "test")
    if column is None:
        column = next((c for c in rows.column_names if c.lower() in CAPTIONS), "")
    if column not in rows.column_names:
        rest = text.partition("#")[0]
        raise ConfigError(
            f"hf:{text}: name the column with the prompts, as in hf:{rest}#COLUMN; it has "
            f"{', '.join(rows.column_names)}"
        )
    prompts = [Prompt(value) for value in rows[column] if isinstance(value, str) and value.strip()]
    if not prompts:
        raise ConfigError(f"hf:{text}: the column {column} holds no text")
    return prompts


def digest_rows(prompts: list[Prompt]) -> list[Mapping[str, Any]]:
    """What of prompts decides the images and scores, as JSON."""
    return [{"prompt": prompt.text, "metadata": dict(prompt.metadata)} for prompt in prompts]


def describe(source: str | None, suite: Suite) -> str:
    return suite.where if source is None else (Path(source).name if "hf:" not in source else source)
