"""Means, bands and gaps of curves, on numbers made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flow_trainer.record.report.runs import Column, ranges
from flow_trainer.record.report.series import Curve, curve, joined
from processes import environment
from run_folders import make_run


def column(epochs: list[int], values: list[float]) -> Column:
    return np.array(epochs), np.array(values)


def drawn(*columns: Column, most: int = 100) -> Curve:
    found = curve(columns, most)
    assert found is not None
    return found


def test_a_band_reaches_from_the_lowest_seed_to_the_highest() -> None:
    found = drawn(column([1, 2, 3], [1, 2, 3]), column([1, 2], [3, 6]))
    assert found.x.tolist() == [1, 2, 3]
    assert found.mean.tolist() == [2, 4, 3]
    assert found.low.tolist() == [1, 2, 3]
    assert found.high.tolist() == [3, 6, 3]
    assert found.common == 2
    assert found.has_band


def test_one_run_has_no_band_and_no_run_no_curve() -> None:
    assert not drawn(column([1, 2], [1, 2])).has_band
    assert curve([], 100) is None
    assert curve([column([], [])], 100) is None


def test_long_runs_become_means_of_neighbours_within_their_extremes() -> None:
    epochs = list(range(1, 1001))
    values = [float(epoch % 2) for epoch in epochs]
    values[500] = 7.0
    found = drawn(column(epochs, values), most=100)
    assert found.per_point == 10
    assert len(found.x) == 100
    assert found.x[:2].tolist() == [5.5, 15.5]
    assert np.median(found.mean) == 0.5
    assert found.high.max() == 7
    assert found.low.max() == 0


def test_a_line_breaks_where_many_epochs_are_missing_and_bridges_one() -> None:
    found = drawn(column([1, 2, 4, 5, 15, 16], [1, 1, 1, 1, 2, 2]))
    assert found.x.tolist() == [1, 2, 4, 5, 10, 15, 16]
    assert np.isnan(found.mean).tolist() == [False] * 4 + [True] + [False] * 2


def test_curves_of_other_axes_are_joined_point_by_point() -> None:
    found = joined([np.array([[0, 10], [1.0, 2.0]]), np.array([[0, 20], [3.0, 6.0]])])
    assert found.x.tolist() == [0, 15]
    assert found.mean.tolist() == [2, 4]
    assert (found.low.tolist(), found.high.tolist()) == ([1, 2], [3, 6])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([3], "3"),
        ([3, 7, 8, 9], "3, 7 to 9"),
        (list(range(1, 40, 2)), "1, 3, 5, 7, 9, 11, 13, 15, ..."),
    ],
)
def test_numbers_are_said_as_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1", epochs=2, ended=False)
    code = (
        "import sys; from pathlib import Path; from flow_trainer.__main__ import main; "
        f"status = main(['report', {str(run)!r}]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert done.returncode == 0
    assert (run / "report.html").exists()
