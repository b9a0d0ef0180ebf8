"""`--keep aesthetic>=5.5`: which scores an image needs to be kept."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flow_trainer.errors import ConfigError

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FORM = re.compile(r"\s*([A-Za-z0-9_][\w.-]*)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    column: str
    """A reward, or REWARD.SUB for one of its sub-scores."""
    sign: str
    threshold: float

    @property
    def reward(self) -> str:
        return self.column.partition(".")[0]

    def holds(self, value: float) -> bool:
        """False for NaN."""
        return _OPERATORS[self.sign](value, self.threshold)

    def hold(self, values: np.ndarray) -> np.ndarray:
        return _OPERATORS[self.sign](values, self.threshold)

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.threshold:g}"


def parse_rules(texts: Sequence[str]) -> list[Rule]:
    """Raises ConfigError."""
    return [_parse(text) for text in texts]


def _parse(text: str) -> Rule:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"--keep {text}: write a reward, >=, >, <= or <, and a number, in quotes because > means "
            "something to the shell: --keep 'aesthetic>=5.5'"
        )
    column, sign, number = found.groups()
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise ConfigError(f"--keep {text}: {number} is not a number")
    return Rule(column, sign, threshold)
