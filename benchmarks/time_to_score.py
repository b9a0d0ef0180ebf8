"""How long every objective takes to a score, on the tiny model: CPU seconds, forwards, what the images are.

    python benchmarks/time_to_score.py [--runs FOLDER] [--jobs 2] [--only nft pepg] [--seeds 42]
    python benchmarks/time_to_score.py --report        # trains nothing, shows what is finished
    python benchmarks/time_to_score.py --tune          # the settings that were tried, two rounds

Starts an OCR service, which is the reward, and a JPEG service, which only watches. A run is evaluated on
the held-out words as it goes, and ends when it reaches the last threshold, has fallen, has stalled or has
spent its budget. Every ended run leaves a line in docs/time-to-score.jsonl, from which the table and the
picture are drawn, and is not run again unless its settings or the checkpoint that it starts from change.
Ctrl-C saves; the same command goes on.
Objectives and settings: score/settings.py. In an environment with the `demo` extra.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event

from score.outcome import draw, ends, evaluations, read_outcome, table
from score.results import Results
from score.settings import (
    BUDGET,
    COMMON,
    FASTER,
    FASTEST,
    MARGIN,
    OBJECTIVES,
    SEEDS,
    THRESHOLDS,
    TUNING_BUDGETS,
    TUNING_SEED,
)

from flow_trainer.demo import FLOW_GRPO as RECIPE
from flow_trainer.demo import PROCESS_ENV, ocr_service, reward_service
from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe

EVALUATION_COST = 8_400
"""Training forwards between two evaluations, about."""
POLL_S = 0.5
TUNED_ON = (
    "prompts.validation=../prompts/tiny_words_validation.txt",
    "prompts.heldout=../prompts/tiny_words_validation.txt",
    "evaluation.images_per_prompt=4",
)
"""Settings are not chosen by the words that the table is about."""


@dataclass(frozen=True, slots=True)
class Run:
    runs: Path
    name: str
    settings: tuple[str, ...]
    """All of them, as overrides of RECIPE."""
    thresholds: tuple[float, ...]

    @property
    def of(self) -> tuple[str, ...]:
        """What its line in the results says that it is."""
        return (self.name, *self.settings, f"thresholds {self.thresholds}")

    @property
    def folder(self) -> Path:
        """Another one for other settings or another start: what an earlier run left is not its."""
        said = "\n".join((start_of_all(), *self.of))
        return self.runs / f"{self.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


@cache
def start_of_all() -> str:
    """Names the checkpoint that all runs start from, by its weights."""
    [weights] = (Path(load_recipe(RECIPE).model.path) / "transformer").glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


def slug(objective: str) -> str:
    return objective.replace(",", "").replace(" ", "-")


def run_of(runs: Path, objective: str, seed: int, budget: int, thresholds: Sequence[float]) -> Run:
    row = OBJECTIVES[objective]
    settings = (*COMMON, *row.settings, *row.chosen, f"seed={seed}")
    return Run(runs, f"{slug(objective)}-{seed}", within(settings, budget), tuple(thresholds))


def tuning_runs(runs: Path, objective: str, budget: int) -> dict[str, Run]:
    """By what each changes in the objective's row."""
    row = OBJECTIVES[objective]
    fixed = (*COMMON, *TUNED_ON, *row.settings, f"seed={TUNING_SEED}")
    return {
        " ".join(changes) or "as it is": Run(
            runs,
            f"{slug(objective)}-tune-{number}",
            within((*fixed, *changes), budget),
            (1.01,),
        )
        for number, changes in enumerate(((), *row.tried))
    }


def second_round(runs: Path, objective: str, results: Results) -> dict[str, Run]:
    """The learning rates that won the first round, and the best of what they beat, for longer; nothing
    where none won, or the first round is not finished."""
    first, longer = (tuning_runs(runs, objective, budget) for budget in TUNING_BUDGETS)
    best, *faster = winners(first, results)
    return {changed: longer[changed] for changed in (best, *faster)} if faster else {}


def winners(tried: Mapping[str, Run], results: Results) -> list[str]:
    """The best setting but for learning rates, then the rates that are ahead of it by MARGIN, best first;
    by the last scores. An empty text where a run is not finished."""
    outcomes = {changed: results.outcome(run.of) for changed, run in tried.items()}
    last = {changed: found.curve[-1].score for changed, found in outcomes.items() if found}
    if len(last) < len(tried):
        return [""]
    rates = [" ".join(rate) for rate in (FASTER, FASTEST)]
    by_score = sorted(last, key=last.__getitem__, reverse=True)
    best = next(changed for changed in by_score if changed not in rates)
    return [best, *(c for c in by_score if c in rates and last[c] >= last[best] + MARGIN)]


def within(settings: tuple[str, ...], budget: int) -> tuple[str, ...]:
    """With the epochs that the budget allows, and evaluations along them."""
    recipe = load_recipe(RECIPE, settings)
    cost = forwards(recipe).total * recipe.images_per_epoch
    every = max(1, round(EVALUATION_COST / cost))
    epochs = max(1, round(budget / cost))
    return (*settings, f"epochs={epochs}", f"evaluation.every={every}")


def carry_out(run: Run, urls: Mapping[str, str], results: Results, ending: Event) -> None:
    """Trains and adds to `results`; not what failed, nor when `ending` is set."""
    ended = train(run, urls, ending)
    if ending.is_set():
        return
    if ended is None:
        log = run.folder / "log.txt"
        print(f"{run.folder.name} failed and can be tried again: see {log}", file=sys.stderr)
        return
    results.add(run.of, read_outcome(run.folder, ended))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.folder / "best", ignore_errors=True)
    print(f"{run.folder.name}: {ended}", file=sys.stderr, flush=True)


def train(run: Run, urls: Mapping[str, str], ending: Event) -> str | None:
    """Why the run ended: reached, stalled, fell or budget; None where it failed."""
    epochs = load_recipe(RECIPE, run.settings).epochs

    def end() -> str | None:
        seen = evaluations(run.folder)
        why = ends([row["score"] for row in seen], run.thresholds)
        # not later: the trainer would evaluate the same weights on the same words once more
        return why or ("budget" if seen and seen[-1]["epoch"] == epochs else None)

    if (why := end()) is not None:
        return why
    arguments = ["train", str(RECIPE), "--out", str(run.folder), "--resume", *as_sets(run.settings)]
    watched = ["rewards.jpeg.weight=0"]
    served = [f"rewards.{name}.url={url}" for name, url in urls.items()]
    process = start((*arguments, *as_sets(watched), *as_sets(served)), run.folder)
    try:
        while process.poll() is None and (why := end()) is None and not ending.wait(POLL_S):
            pass
    finally:
        stop(process)
    return why or end()


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


def carry_out_all(runs: Sequence[Run], results: Results, log: Path, jobs: int) -> None:
    """`jobs` at a time. On an exception, Ctrl-C included, what runs saves and ends."""
    log.mkdir(parents=True, exist_ok=True)
    ending = Event()
    with (
        ocr_service(log / "ocr.log") as ocr,
        reward_service("jpeg", log / "jpeg.log") as jpeg,
        ThreadPoolExecutor(jobs) as pool,
    ):
        urls = {"ocr": ocr, "jpeg": jpeg}
        try:
            for future in [pool.submit(carry_out, run, urls, results, ending) for run in runs]:
                future.result()
        except BaseException:
            ending.set()
            pool.shutdown(cancel_futures=True)
            raise


def tuned(of_objective: Mapping[str, Mapping[str, Run]], results: Results) -> str:
    """Markdown: the best and the last score of every setting that was tried, on the validation words."""
    lines = ["| objective | changed | best | last | ended |", "|---|---|---:|---:|---|"]
    for objective, runs in of_objective.items():
        for changed, run in runs.items():
            if (outcome := results.outcome(run.of)) is not None:
                last = outcome.curve[-1].score
                cells = (objective, changed, f"{outcome.best:.3f}", f"{last:.3f}", outcome.ended)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/score"))
    parser.add_argument("--results", type=Path, default=Path("docs/time-to-score.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/time-to-score.png"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", type=int, default=BUDGET, help="transformer forwards per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--tune", action="store_true", help="run the settings that were tried")
    parser.add_argument(
        "--report", action="store_true", help="train nothing, show what is finished"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    results = Results(options.results, start_of_all())
    if options.tune:
        first = {name: tuning_runs(options.runs, name, TUNING_BUDGETS[0]) for name in options.only}
        finish([run for runs in first.values() for run in runs.values()], results, options)
        second = {name: second_round(options.runs, name, results) for name in options.only}
        finish([run for runs in second.values() for run in runs.values()], results, options)
        print(f"{tuned(first, results)}\n\nThe second round:\n\n{tuned(second, results)}")
        return 0
    planned = {
        name: [
            run_of(options.runs, name, s, options.budget, options.thresholds) for s in options.seeds
        ]
        for name in options.only
    }
    # seed by seed: a table of one seed is of use before the others are there
    finish([run for runs in zip(*planned.values(), strict=True) for run in runs], results, options)
    outcomes = {
        name: [found for run in runs if (found := results.outcome(run.of)) is not None]
        for name, runs in planned.items()
    }
    print(table(outcomes, options.thresholds))
    print(f"CPU seconds are of: {', '.join(results.machines())}", file=sys.stderr)
    draw(outcomes, options.picture, options.thresholds)
    return 0


def finish(runs: Sequence[Run], results: Results, options: argparse.Namespace) -> None:
    """Carries out what has no line in the results yet, unless only a report is asked for."""
    runs = [run for run in runs if results.outcome(run.of) is None]
    if options.report or not runs:
        return
    # SIGINT too: a shell's background jobs start with it ignored
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    carry_out_all(runs, results, options.runs, options.jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
