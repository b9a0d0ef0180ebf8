"""Intervals: what they cover, and what counts as one draw."""

from __future__ import annotations

import numpy as np
import pytest

from flow_trainer.evaluation.bootstrap import interval


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 1))
    found = interval([values])
    assert found is not None
    assert found.mean == pytest.approx(values.mean())
    error = values.std(ddof=1) / 20
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.06)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.06)


def test_it_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        found = interval([rng.random((60, 2))])
        assert found is not None
        hits += found.low <= 0.5 <= found.high
    assert 180 <= hits <= 198


def test_images_of_a_prompt_are_not_independent_draws() -> None:
    per_prompt = np.random.default_rng(3).normal(size=(50, 1))
    once, repeated = interval([per_prompt]), interval([np.repeat(per_prompt, 8, axis=1)])
    assert once is not None
    assert repeated is not None
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_missing_scores_are_left_out_and_groups_weigh_alike() -> None:
    small, large = np.array([[1.0, np.nan]]), np.zeros((9, 2))
    found = interval([small, large])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert interval([small, np.full((2, 2), np.nan)]) is None
