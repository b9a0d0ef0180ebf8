"""How long every objective takes to a score, on the tiny model: CPU seconds, forwards, what the images are.

    python benchmarks/time_to_score.py [--runs FOLDER] [--jobs 2] [--only nft pepg] [--seeds 42]
    python benchmarks/time_to_score.py --report        # trains nothing, shows what is finished
    python benchmarks/time_to_score.py --tune          # the settings that were tried, each with one budget

Starts an OCR service, which is the reward, and a JPEG service, which only watches. A run is evaluated on
the held-out words as it goes, and ends when it reaches the last threshold, has fallen, or has spent its
budget; its checkpoints where it first reached a threshold are then looked at with more images, and
removed. Ctrl-C saves; the same command goes on. Objectives and settings: score/settings.py. In an
environment with the `demo` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from score.outcome import (
    IMAGES,
    OUTCOME,
    Outcomes,
    draw,
    ends,
    first_epochs,
    is_looked_at,
    look_folder,
    read_look,
    read_outcome,
    table,
    validations,
)
from score.settings import (
    BUDGET,
    COMMON,
    OBJECTIVES,
    SEEDS,
    THRESHOLDS,
    TUNING_BUDGET,
    TUNING_SEED,
)

from flow_trainer.demo import PROCESS_ENV, RECIPE, ocr_service, reward_service
from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe

EVALUATION_COST = 5_600
"""Training forwards between two evaluations, about."""
POLL_S = 0.5
TUNED_ON = (
    "prompts.validation=../prompts/tiny_words_validation.txt",
    "evaluation.images_per_prompt=4",
)
"""Settings are not chosen by the words that the table is about."""


@dataclass(frozen=True, slots=True)
class Services:
    ocr: str
    jpeg: str


@dataclass(frozen=True, slots=True)
class Run:
    folder: Path
    settings: tuple[str, ...]
    """All of them, as overrides of the demo's recipe."""
    thresholds: tuple[float, ...]
    looks: bool = True
    """Whether its checkpoints at the thresholds are evaluated."""

    @property
    def done(self) -> bool:
        return (self.folder / OUTCOME).exists()


def run_of(runs: Path, objective: str, seed: int, budget: int, thresholds: Sequence[float]) -> Run:
    folder = runs / f"{objective.replace(',', '').replace(' ', '-')}-{seed}"
    settings = (*COMMON, *OBJECTIVES[objective].settings, f"seed={seed}")
    return Run(folder, within(settings, budget), tuple(thresholds))


def tuning_runs(runs: Path, objective: str, budget: int) -> dict[str, Run]:
    """By what each changes in the objective's row."""
    row = OBJECTIVES[objective]
    fixed = (*COMMON, *TUNED_ON, *row.settings, f"seed={TUNING_SEED}")
    name = objective.replace(",", "").replace(" ", "-")
    return {
        " ".join(changes) or "as it is": Run(
            runs / "tune" / f"{name}-{number}", within((*fixed, *changes), budget), (1.01,), False
        )
        for number, changes in enumerate(((), *row.tried))
    }


def within(settings: tuple[str, ...], budget: int) -> tuple[str, ...]:
    """With the epochs that the budget allows, and evaluations and checkpoints along them."""
    recipe = load_recipe(RECIPE, settings)
    cost = forwards(recipe).total * recipe.images_per_epoch
    every = max(1, round(EVALUATION_COST / cost))
    epochs = max(1, round(budget / cost))
    return (
        *settings,
        f"epochs={epochs}",
        f"evaluation.every={every}",
        f"checkpoints.every={every}",
    )


def carry_out(run: Run, services: Services, ending: Event) -> None:
    """Trains, looks and leaves OUTCOME; returns early, without it, when `ending` is set."""
    ended = train(run, services, ending)
    if ending.is_set():
        return
    if run.looks:
        for epoch in first_epochs(run.folder, run.thresholds).values():
            folder = look_folder(run.folder, epoch)
            checkpoint = run.folder / "checkpoints" / f"epoch_{epoch:05d}"
            if not is_looked_at(folder):
                look(run.settings, services, folder, checkpoint, ending)
            if ending.is_set():
                return
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.folder / "best", ignore_errors=True)
    (run.folder / OUTCOME).write_text(json.dumps({"ended": ended, "settings": run.settings}) + "\n")
    print(f"{run.folder.name}: {ended}", file=sys.stderr, flush=True)


def train(run: Run, services: Services, ending: Event) -> str:
    """Why the run ended: reached, fell, budget or failed."""
    why = ends([row["score"] for row in validations(run.folder)], run.thresholds)
    if why is not None or (run.folder / "summary.json").exists():
        return why or "budget"
    arguments = ("train", str(RECIPE), "--out", str(run.folder), "--resume", *as_sets(run.settings))
    process = start((*arguments, *as_sets([f"rewards.ocr.url={services.ocr}"])), run.folder)
    try:
        while process.poll() is None:
            why = ends([row["score"] for row in validations(run.folder)], run.thresholds)
            if why is not None or ending.wait(POLL_S):
                break
    finally:
        stop(process)
    if why is None:  # or it was the last evaluation
        why = ends([row["score"] for row in validations(run.folder)], run.thresholds)
    if why is not None:
        return why
    return "budget" if (run.folder / "summary.json").exists() else "failed"


def look(
    settings: Sequence[str],
    services: Services,
    folder: Path,
    checkpoint: Path | None,
    ending: Event,
) -> None:
    """Evaluates a checkpoint (None: the untrained model) on the held-out words. Raises RuntimeError."""
    watched = [f"rewards.jpeg.url={services.jpeg}", "rewards.jpeg.weight=0"]
    arguments = ["evaluate", str(RECIPE), "--split", "validation", "--images", str(IMAGES)]
    arguments += ["--out", str(folder)] + (["--checkpoint", str(checkpoint)] if checkpoint else [])
    process = start(
        (*arguments, *as_sets([*settings, f"rewards.ocr.url={services.ocr}", *watched])), folder
    )
    try:
        while process.poll() is None and not ending.wait(POLL_S):
            pass
    finally:
        stop(process)
    if not ending.is_set() and not is_looked_at(folder):
        raise RuntimeError(f"{folder} could not be evaluated: see {folder / 'log.txt'}")


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flow_trainer", *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, **PROCESS_ENV, "OMP_NUM_THREADS": "1"},
            # Ctrl-C comes from us, once: the trainer takes a second one as "do not even save"
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Lets it save and end."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def as_sets(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def carry_out_all(
    runs: Sequence[Run], bases: Sequence[tuple[Path, int]], log: Path, jobs: int
) -> None:
    """What is not done yet, `jobs` at a time. On an exception, Ctrl-C included, what runs saves and
    ends."""
    log.mkdir(parents=True, exist_ok=True)
    ending = Event()
    with (
        ocr_service(log / "ocr.log") as ocr,
        reward_service("jpeg", log / "jpeg.log") as jpeg,
        ThreadPoolExecutor(jobs) as pool,
    ):
        services = Services(ocr, jpeg)
        try:
            waiting = [
                pool.submit(look, (*COMMON, f"seed={seed}"), services, folder, None, ending)
                for folder, seed in bases
                if not is_looked_at(folder)
            ]
            waiting += [
                pool.submit(carry_out, run, services, ending) for run in runs if not run.done
            ]
            for future in waiting:
                future.result()
        except BaseException:
            ending.set()
            pool.shutdown(cancel_futures=True)
            raise


def finished(
    runs: Path, objectives: Sequence[str], seeds: Sequence[int], options: argparse.Namespace
) -> Outcomes:
    planned = {
        name: [run_of(runs, name, seed, options.budget, options.thresholds) for seed in seeds]
        for name in objectives
    }
    return {
        name: [read_outcome(run.folder, options.thresholds) for run in of_name if run.done]
        for name, of_name in planned.items()
    }


def tuned(runs: Path, objectives: Sequence[str], budget: int) -> str:
    """Markdown: the best and the last score of every setting that was tried, on the validation words."""
    lines = ["| objective | changed | best | last | ended |", "|---|---|---:|---:|---|"]
    for objective in objectives:
        for changed, run in tuning_runs(runs, objective, budget).items():
            if run.done:
                scores = [row["score"] for row in validations(run.folder)] or [float("nan")]
                ended = json.loads((run.folder / OUTCOME).read_text())["ended"]
                cells = (objective, changed, f"{max(scores):.3f}", f"{scores[-1]:.3f}", ended)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/score"))
    parser.add_argument("--picture", type=Path, default=Path("docs/time-to-score.png"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", type=int, help="transformer forwards per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--tune", action="store_true", help="run the settings that were tried")
    parser.add_argument(
        "--report", action="store_true", help="train nothing, show what is finished"
    )
    options = parser.parse_args(arguments)
    options.budget = options.budget or (TUNING_BUDGET if options.tune else BUDGET)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    runs: Path = options.runs
    if options.tune:
        bases: list[tuple[Path, int]] = []
        planned = [
            run for name in options.only for run in tuning_runs(runs, name, options.budget).values()
        ]
    else:
        bases = [(runs / f"base-{seed}", seed) for seed in options.seeds]
        planned = [
            run_of(runs, name, seed, options.budget, options.thresholds)
            for seed in options.seeds
            for name in options.only
        ]
    looked = all(is_looked_at(folder) for folder, _ in bases)
    if not options.report and not (looked and all(run.done for run in planned)):
        # SIGINT too: a shell's background jobs start with it ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        carry_out_all(planned, bases, runs, options.jobs)
    if options.tune:
        print(tuned(runs, options.only, options.budget))
        return 0
    outcomes = finished(runs, options.only, options.seeds, options)
    base = [read_look(f, load_recipe(RECIPE)) for f, _ in bases if is_looked_at(f)]
    print(table(outcomes, base, options.thresholds))
    draw(outcomes, options.picture, options.thresholds)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
