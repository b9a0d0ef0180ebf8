"""benchmarks/gpu/hours.py: the arithmetic of H100-hours, and that the document has its table."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folders = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    import hours

    return hours


def test_the_document_has_the_table_that_the_recipes_give(hours: ModuleType) -> None:
    found = hours.table()
    assert found in hours.DOCUMENT.read_text(encoding="utf-8")
    (line,) = (line for line in found.splitlines() if "sd35m_geneval`" in line)
    cells = [cell.strip() for cell in line.split("|")]
    # 5,000 updates of half of 48 x 24 images, 74 forwards each
    assert cells[2:6] == ["74", "576", "5,000", "213"]
    flop = 5000 * 576 * 74 * 2.22e12
    assert float(cells[7]) == pytest.approx(flop / 0.4 / 989.4e12 / 3600, rel=0.01)
