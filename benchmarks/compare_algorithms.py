"""The algorithms beside each other on the tiny model, three seeds, at one cost in transformer forwards.

    python benchmarks/compare_algorithms.py [--runs FOLDER] [--jobs 2]

Starts one OCR reward service, trains what has no summary.json yet (Ctrl-C saves; the same command
goes on), prints the table of docs/reproducing.md and draws docs/compare.png. In an environment with
the `demo` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import Outcomes, draw, read_outcome, table

from flow_trainer.demo import FLOW_GRPO as RECIPE
from flow_trainer.demo import PROCESS_ENV, ocr_service
from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe

BUDGET = 54_000
"""Transformer forwards of a run's training, the backward counted as two; evaluations come on top."""

SEEDS = (42, 43, 44)
VALIDATIONS = 5
"""Along a run."""
WARMUP = 0.1
"""Of all updates, as in the recipe."""
POLL_S = 0.5

COMMON = (
    "evaluation.num_steps=40",
    "logging.tensorboard=false",
    "logging.image_every=0",
)

ALL_STEPS = ("sampling.window.kind=all",)

VARIANTS: dict[str, tuple[str, ...]] = {
    "Flow-GRPO, KL": (
        *ALL_STEPS,
        "update.kl=gaussian",
        "update.beta=0.004",
    ),
    "Flow-GRPO, no KL": ALL_STEPS,
    "fast window": (),
    "GRPO-Guard": (
        *ALL_STEPS,
        "update.objective=guard",
        "update.clip_range=1e-4",
    ),
    "DiffusionNFT": (
        "update.objective=nft",
        "sampling.dynamics=ode",
        "sampling.same_latent=false",
        "update.trained_steps=4",
        "forward.strength=0.1",
    ),
}
"""What each changes in Flow-GRPO's recipe (trainer/recipes/tiny_sd3_ocr.toml)."""


@dataclass(frozen=True, slots=True)
class Job:
    folder: Path
    arguments: tuple[str, ...]
    """Of flow-grpo."""

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").exists()


def overrides(variant: str, seed: int, budget: int) -> list[str]:
    return within(budget, RECIPE, [*COMMON, *VARIANTS[variant], f"seed={seed}"], VALIDATIONS)


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


def train_job(runs: Path, variant: str, seed: int, budget: int) -> Job:
    folder = runs / f"{variant.lower().replace(',', '').replace(' ', '-')}-{seed}"
    settings = _set(overrides(variant, seed, budget))
    return Job(folder, ("train", str(RECIPE), "--out", str(folder), "--resume", *settings))


def base_job(runs: Path, seed: int) -> Job:
    """The untrained model on the validation prompts, where the curves of a seed begin."""
    folder = runs / f"base-{seed}"
    images = str(load_recipe(RECIPE).evaluation.images_per_prompt)
    arguments = ("evaluate", str(RECIPE), "--split", "validation", "--images", images)
    return Job(folder, (*arguments, "--out", str(folder), *_set([*COMMON, f"seed={seed}"])))


def run_jobs(waiting: Sequence[Job], url: str, at_once: int, *, reward: str = "ocr") -> list[Job]:
    """Runs what is not done yet, with the recipe's reward at `url`, and returns what failed. On an
    exception, Ctrl-C included, the running ones save and end."""
    queue = [job for job in waiting if not job.done]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    failed = []
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.pop(0)
                running[job] = _start(job, f"rewards.{reward}.url={url}")
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
    command = [
        sys.executable,
        "-m",
        "flow_trainer",
        *job.arguments,
        *_set([reward]),
    ]
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **PROCESS_ENV, "OMP_NUM_THREADS": "1"},
            # Ctrl-C comes from us, once: the trainer takes a second one as "do not even save"
            start_new_session=True,
        )


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def read_outcomes(
    runs: Path, variants: Sequence[str], seeds: Sequence[int], budget: int
) -> Outcomes:
    """Of the finished runs."""
    outcomes = {}
    for variant in variants:
        jobs = [(train_job(runs, variant, seed, budget), base_job(runs, seed)) for seed in seeds]
        outcomes[variant] = [
            read_outcome(
                job.folder, json.loads((base.folder / "summary.json").read_text())["score"]
            )
            for job, base in jobs
            if job.done and base.done
        ]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--picture", type=Path, default=Path("docs/compare.png"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", type=int, default=BUDGET, help="transformer forwards per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--report", action="store_true", help="train nothing, show what is finished"
    )
    options = parser.parse_args()
    jobs = [base_job(options.runs, seed) for seed in options.seeds]
    jobs += [
        train_job(options.runs, variant, seed, options.budget)
        for seed in options.seeds
        for variant in options.only
    ]
    failed: list[Job] = []
    if not options.report and not all(job.done for job in jobs):
        options.runs.mkdir(parents=True, exist_ok=True)
        # SIGINT too: a shell's background jobs start with it ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        with ocr_service(options.runs / "service.log") as url:
            failed = run_jobs(jobs, url, options.jobs)
    outcomes = read_outcomes(options.runs, options.only, options.seeds, options.budget)
    print(table(outcomes))
    draw(outcomes, options.picture)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
