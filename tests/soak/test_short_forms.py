"""Every part of the soak in seconds. Times are figures of the long form and not asserted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import hostile
import kills
import overload
import replicas
import report
import steady
import storage
from parts import Figures
from watch import Seen

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]

# What depends on how busy the machine is, and what seconds cannot show: memory is still warming up.
LONG_FORM = ("within", "goodput", "by itself", "asked for", "memory flat")


def run(part: Any, *flags: str) -> Figures:
    return part.soak(part.parser().parse_args(list(flags)))


def assert_met(figures: Figures) -> None:
    assert figures.demands
    failed = [
        f for f in figures.failed if not any(word in f.partition(":")[0] for word in LONG_FORM)
    ]
    assert failed == []


def test_hostile_inputs() -> None:
    figures = run(hostile, "--inputs", "600")
    assert_met(figures)
    assert len(figures.rows) == 11


def test_ten_times_overload() -> None:
    assert_met(run(overload, "--seconds", "4"))


def test_replicas_killed_frozen_and_restarted() -> None:
    assert_met(run(replicas, "--seconds", "1"))


def test_steady_scoring() -> None:
    assert_met(run(steady, "--seconds", "4"))


def test_the_trainer_killed() -> None:
    figures = kills.kill_at(kills.SHORT)
    assert_met(figures)
    assert len(figures.rows) == len(kills.SHORT)


def test_storage_that_fails() -> None:
    assert_met(run(storage, "--short"))


def test_the_points_are_twenty_and_of_every_phase() -> None:
    assert len(set(kills.POINTS)) >= 20
    phases = {point.phase for point in kills.POINTS}
    assert phases >= {"start-up", "rollout", "waiting", "update", "checkpoint", "evaluation"}


def test_a_question_that_waits_stands_for_those_not_asked() -> None:
    seen = Seen(http_ms=[[0.0, 1.0], [1.0, 100.0], [2.0, 2.0]])
    # asked every 25 ms over HTTP, every 100 ms over gRPC
    assert seen.times("http_ms") == [1.0, 100.0, 75.0, 50.0, 25.0, 0.0, 2.0]
    assert seen.times("http_ms", 1.5) == [2.0]
    assert Seen(grpc_ms=[[0.0, 250.0]]).times("grpc_ms") == [250.0, 150.0, 50.0]


def test_the_document_is_written_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{report.BEGIN}old{report.END}\nafter\n")
    figures = Figures("steady", "Steady scoring", header=["a"], rows=[["1|2"]], notes=["A remark."])
    figures.demand("flat", "yes", True)
    figures.demand("fast", "no", False)
    (tmp_path / "steady.json").write_text(json.dumps(vars(figures)))
    (tmp_path / "kills.json").write_text(
        '{"part": "kills", "problem": "it hung", "command": "python x", "seconds": 1}'
    )
    report.write_document(document, tmp_path)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| flat | yes | met |" in text
    assert "| fast | no | **not met** |" in text
    assert "| 1/2 |" in text
    assert "No figures: it hung" in text
    assert "old" not in text
