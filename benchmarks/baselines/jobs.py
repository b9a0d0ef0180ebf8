"""Runs of `flow-grpo` side by side, each in its own process, within a budget of transformer forwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flow_trainer.demo import PROCESS_ENV
from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe

WARMUP = 0.1
"""Of all updates."""
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    folder: Path
    arguments: tuple[str, ...]
    """Of flow-grpo."""

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").exists()


def within(budget: int, recipe_file: Path, fixed: Sequence[str], validations: int) -> list[str]:
    """The settings `fixed`, with the epochs that the budget allows and what follows from them."""
    recipe = load_recipe(recipe_file, fixed)
    epochs = max(1, round(budget / (forwards(recipe).total * recipe.images_per_epoch)))
    updates = epochs * recipe.update.updates_per_epoch
    return [
        *fixed,
        f"epochs={epochs}",
        f"update.warmup_updates={round(WARMUP * updates)}",
        f"evaluation.every={max(1, round(epochs / validations))}",
    ]


def run_jobs(waiting: Sequence[Job], reward: str, at_once: int) -> list[Job]:
    """Runs what is not done yet, with the setting `reward` (rewards.NAME.url=URL), and returns what failed.
    On an exception, Ctrl-C included, the running ones save and end."""
    queue = [job for job in waiting if not job.done]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    failed = []
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.pop(0)
                running[job] = _start(job, reward)
            time.sleep(POLL_S)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                del running[job]
                print(f"{job.folder.name}: {'done' if job.done else 'failed'}", file=sys.stderr)
                if not job.done:
                    failed.append(job)
    finally:
        for process in running.values():
            process.terminate()  # what runs in the background of a shell may ignore SIGINT
        for process in running.values():
            process.wait()
    return failed


def _start(job: Job, reward: str) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flow_trainer", *job.arguments, "--set", reward],
            stdout=log,
            stderr=log,
            env={**os.environ, **PROCESS_ENV, "OMP_NUM_THREADS": "1"},
            # Ctrl-C comes from us, once: the trainer takes a second one as "do not even save"
            start_new_session=True,
        )
