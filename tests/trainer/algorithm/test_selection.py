"""The most contrastive members of a group, against the published selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flow_trainer.algorithm.selection import top_and_bottom

FILE = Path(__file__).parents[2] / "golden" / "objectives" / "selection.json"
CASES = json.loads(FILE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_selection_is_that_of_the_original(case: dict[str, Any]) -> None:
    rewards, groups = np.array(case["rewards"]), np.array(case["group_ids"])
    found: list[int] = []
    for group in dict.fromkeys(case["group_ids"]):
        rows = np.flatnonzero(groups == group)
        valid = np.ones(len(rows), bool)
        own = top_and_bottom(rewards[rows], valid, case["top_k"], case["bottom_k"])
        found += [int(rows[i]) for i in own]
    assert found == case["indices"]


def test_unscored_members_come_last() -> None:
    rewards = np.array([np.nan, 0.2, np.nan, 0.9, 0.5])
    assert top_and_bottom(rewards, ~np.isnan(rewards), 1, 1) == [3, 1]
    assert top_and_bottom(rewards, ~np.isnan(rewards), 2, 2) == [3, 4, 1, 0]
