"""The trainer ended by SIGKILL at named points of a run: `python tests/soak/kills.py`.

Each run is resumed once, and must then be the undisturbed run bit for bit: weights, averages, moments, the
best weights, and every row of its logs.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import Figures, run_part, say
from training import Bench, differences, training_bench

import ranks

LOOP, CHECKPOINT = "flow_trainer.loop", "flow_trainer.record.checkpoint"
SAMPLE, SAVE = f"{LOOP}.train:sample", f"{CHECKPOINT}:Checkpoints.save"


@dataclass(frozen=True)
class Point:
    """The process ends before or after a call of `target`, as its module knows it: the first, or the
    `call`-th, once `armed` was called so many times."""

    phase: str
    what: str
    target: str
    when: str = "before"
    call: int = 1
    armed: str = ""
    armed_calls: int = 1


POINTS = (
    Point("start-up", "the folder is locked, and empty", f"{LOOP}.train:open_run"),
    Point("start-up", "the model is loaded", f"{LOOP}.run:load_policy", "after"),
    Point("start-up", "the recipe is kept, no row logged", f"{LOOP}.run:keep_recipe", "after"),
    Point("start-up", "held-out prompts before training are logged", f"{LOOP}.train:_epochs"),
    Point("start-up", "in the first checkpoint", f"{CHECKPOINT}:write_tensors", "after"),
    Point("rollout", "epoch 1, nothing drawn", SAMPLE),
    Point(
        "rollout", "epoch 2, half of it drawn", f"{LOOP}.scoring:Scorer.submit", "after", 1, SAMPLE, 2
    ),
    Point("waiting", "epoch 2, all drawn, no score looked at", f"{LOOP}.train:Feedback", armed=SAMPLE,
          armed_calls=2),
    Point("waiting", "epoch 3, scores asked for", f"{LOOP}.scoring:Scorer._join", armed=SAMPLE,
          armed_calls=3),
    Point("update", "epoch 1, before the step", f"{LOOP}.updates.descend:_step"),
    Point("update", "epoch 2, after the step", f"{LOOP}.updates.descend:_step", "after", 1, SAMPLE, 2),
    Point("update", "epoch 3, updated and not logged", f"{LOOP}.train:log_epoch", "before", 3),
    Point("update", "epoch 2, some rows of the audit written",
          "flow_trainer.record.runlog:RunLog._write", "after", 4, f"{LOOP}.train:log_epoch", 2),
    Point("evaluation", "the validation is scored", f"{LOOP}.train:evaluate", "after", 1, SAMPLE, 2),
    Point("evaluation", "the best weights are written, the row is not",
          f"{CHECKPOINT}:Checkpoints.save_best", "after"),
    Point("evaluation", "the row is written, the checkpoint is not", SAVE, "before", 3),
    Point("checkpoint", "a folder is made", f"{CHECKPOINT}:write_tensors", "before", 1, SAVE, 3),
    Point("checkpoint", "the weights are written", f"{CHECKPOINT}:write_tensors", "after", 1, SAVE, 3),
    Point("checkpoint", "all is written, nothing sealed", f"{CHECKPOINT}:seal", "before", 1, SAVE, 3),
    Point("checkpoint", "sealed, not renamed", f"{CHECKPOINT}:os.rename", "before", 1, SAVE, 3),
    Point("checkpoint", "renamed, the oldest not removed", f"{CHECKPOINT}:os.rename", "after", 1, SAVE, 3),
    Point("checkpoint", "the oldest removed", f"{CHECKPOINT}:shutil.rmtree", "after", 2, SAVE, 4),
    Point("end", "the last checkpoint is written", f"{LOOP}.train:_finish"),
    Point("end", "all is evaluated, no summary", f"{LOOP}.train:write_summary"),
)  # fmt: skip

SHORT = tuple(POINTS[i] for i in (0, 6, 10, 15, 19))
"""One of most phases, for tests of seconds."""


def command_with(point: Point, arguments: list[str], log: Path) -> None:
    """`flow-grpo ARGUMENTS` that ends at the point."""
    calls = {point.armed: 0, point.target: 0}
    if point.armed:
        arming = point.armed

        def count(at_end: bool) -> None:
            calls[arming] += not at_end

        _patch(arming, count)

    def end(at_end: bool) -> None:
        if point.armed and calls[point.armed] < point.armed_calls:
            return
        calls[point.target] += not at_end
        if calls[point.target] == point.call and at_end == (point.when == "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    _patch(point.target, end)
    ranks.command(arguments, log)


def _patch(target: str, look: Any) -> None:
    """Calls look(False) before each call of the target, and look(True) after it."""
    module, _, path = target.partition(":")
    holder: Any = importlib.import_module(module)
    *owners, name = path.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    real = getattr(holder, name)

    @functools.wraps(real)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        look(False)
        result = real(*arguments, **options)
        look(True)
        return result

    setattr(holder, name, wrapped)


def kill_and_resume(bench: Bench, point: Point, out: Path, whole: Path) -> str:
    """What is wrong with the resumed run; nothing: it is the undisturbed one."""
    arguments = ["train", str(bench.recipe), "--out", str(out)]
    log = out.with_suffix(".log")
    (status,) = ranks.start(1, command_with, point, arguments, log).wait(240)
    if status != -signal.SIGKILL:
        return f"the run ended with {status} instead: {log.read_text()[-300:]}"
    status, printed = bench.train(out, "--resume")
    if status != 0:
        return f"resuming ended with {status}: {printed[-300:]}"
    return ", ".join(differences(out, whole))


def kill_at(points: tuple[Point, ...]) -> Figures:
    figures = Figures("kills", "The trainer killed")
    figures.header = ["phase", "killed when", "resumed"]
    wrong = []
    with tempfile.TemporaryDirectory() as name, training_bench(Path(name)) as bench:
        whole = bench.folder / "whole"
        status, printed = bench.train(whole)
        assert status == 0, printed
        for number, point in enumerate(points):
            problem = kill_and_resume(bench, point, bench.folder / f"run{number}", whole)
            say(
                f"kills: {number + 1} of {len(points)}, {point.phase}, {point.what}: {problem or 'same'}"
            )
            figures.rows.append([point.phase, point.what, problem or "bit for bit"])
            wrong += [point.what] if problem else []
    figures.demand(
        f"killed at {len(points)} points, resumed bit for bit, logs included",
        f"{len(points) - len(wrong)} of {len(points)}{': not ' if wrong else ''}{'; '.join(wrong)}",
        not wrong,
    )
    return figures


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--short", action="store_true", help="five points only")
    return made


if __name__ == "__main__":
    run_part(lambda options: kill_at(SHORT if options.short else POINTS), parser())
