"""`make gpu-check` on a CPU, shapes shrunk: steps of their own, bounded, and reported whatever happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folders = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    import check

    return check


def test_steps_fit_into_nine_minutes(check: ModuleType) -> None:
    assert sum(check.STEPS.values()) <= 9 * 60


@pytest.mark.timeout(300)
def test_a_failed_step_is_reported_beside_the_others(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text(f"Before.\n\n{check.BEGIN}{check.END}\n\nAfter.\n")
    run_step = check.run_step

    def hurried(name: str, *, shrunk: bool, limit_s: float) -> dict:
        return run_step(name, shrunk=shrunk, limit_s=0.1 if name == "flux" else limit_s)

    monkeypatch.setattr(check, "run_step", hurried)
    assert check.main(["--shrunk", "--only", "flux", "nccl", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "cpu-shrunk.json").read_text())
    assert record["steps"]["flux"]["error"] == "not done within 0.1 s"
    assert record["steps"]["nccl"]["backend"] == "gloo"
    assert record["steps"]["nccl"]["sharded_step"] is True
    assert record["steps"]["versions"]["torch"]
    table = (tmp_path / "README.md").read_text()
    assert table.startswith("Before.")
    assert table.endswith("After.\n")
    assert "| CPU (shrunk shapes) | flux | FAILED: not done within 0.1 s" in table


@pytest.mark.timeout(300)
def test_precision_is_that_of_the_same_weights_in_float32(check: ModuleType) -> None:
    from precision import _compared

    found = _compared("float16", False, True)
    assert found["ratio_error"] < 1e-6
    assert 0.99 < found["cosine"] < 1
    assert found["zeros"] < 0.2
