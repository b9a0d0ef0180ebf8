"""The paper's baselines beside Flow-GRPO on the tiny model, three seeds, equal transformer forwards.

    python benchmarks/baselines/run.py [--runs FOLDER] [--seeds 42 43 44] [--report]

All train on one reward with a gradient, legible.py, because ReFL needs one; the OCR reward, which nothing
trains on, reads the held-out images at the end. What has a summary.json is not run again, and Ctrl-C saves.
Prints the table of docs/reproducing.md and draws docs/baselines.png. In an environment with the `demo`
extra.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs import Job, run_jobs, within
from results import Outcome, draw, read_outcome, score_images, table

from flow_trainer.demo import ocr_service, reward_service

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "tiny_sd3_legible.toml"
BUDGET = 27_000
"""Transformer forwards of a run's training, the backward counted as two; evaluations come on top."""
SEEDS = (42, 43, 44)
VALIDATIONS = 4

FLOW = ("sampling.window.kind=first", "sampling.window.size=4", "sampling.same_latent=true")
"""As in recipes/tiny_sd3_ocr.toml: the steps in which the letters are decided, from one noise in a
group."""
CHOSEN = ("sampling.dynamics=ode", "forward.old_max=0")

VARIANTS: dict[str, tuple[str, ...]] = {
    "SFT": (*CHOSEN, "update.objective=sft"),
    "DPO": (*CHOSEN, "update.objective=dpo"),
    "ORW": (*CHOSEN, "update.objective=orw", "update.trained_steps=4"),
    "ReFL": (
        "sampling.dynamics=ode",
        "update.objective=refl",
        "sampling.window.kind=random",
        "sampling.window.size=1",
        "sampling.window.lo=7",
        # an epoch is one update here, and two of twice the size for the others
        "update.updates_per_epoch=1",
        "sampling.prompts_per_epoch=4",
    ),
    "Flow-GRPO, no KL": FLOW,
    "Flow-GRPO, KL": (*FLOW, "update.kl=gaussian", "update.beta=0.004"),
}
"""What each changes in RECIPE."""


def overrides(variant: str, seed: int, budget: int) -> list[str]:
    return within(budget, RECIPE, [*VARIANTS[variant], f"seed={seed}"], VALIDATIONS)


def train_job(runs: Path, variant: str, seed: int, budget: int) -> Job:
    folder = runs / f"{variant.lower().replace(',', '').replace(' ', '-')}-{seed}"
    settings = [part for s in overrides(variant, seed, budget) for part in ("--set", s)]
    return Job(folder, ("train", str(RECIPE), "--out", str(folder), "--resume", *settings))


def monitored(runs: Path, jobs: Sequence[Job]) -> None:
    """OCR scores of the held-out images of finished runs, kept beside them."""
    waiting = [job for job in jobs if job.done and not (job.folder / "monitor.npz").exists()]
    if waiting:
        with ocr_service(runs / "monitor.log") as url:
            for job in waiting:
                score_images(job.folder, url)


def outcomes(
    runs: Path, variants: Sequence[str], seeds: Sequence[int], budget: int
) -> Iterator[tuple[str, list[Outcome]]]:
    for variant in variants:
        jobs = [train_job(runs, variant, seed, budget) for seed in seeds]
        done = [job.folder for job in jobs if (job.folder / "monitor.npz").exists()]
        yield variant, [read_outcome(folder) for folder in done]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--picture", type=Path, default=Path("docs/baselines.png"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", type=int, default=BUDGET, help="transformer forwards per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--report", action="store_true", help="train nothing, show what is done")
    options = parser.parse_args()
    jobs = [
        train_job(options.runs, variant, seed, options.budget)
        for seed in options.seeds
        for variant in options.only
    ]
    failed: list[Job] = []
    if not options.report:
        options.runs.mkdir(parents=True, exist_ok=True)
        # SIGINT too: a shell's background jobs start with it ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        if not all(job.done for job in jobs):
            script, log = HERE / "legible.py", options.runs / "service.log"
            with reward_service(str(script), log) as url:
                failed = run_jobs(jobs, f"rewards.legible.url={url}", options.jobs)
        monitored(options.runs, jobs)
    found = dict(outcomes(options.runs, options.only, options.seeds, options.budget))
    print(table(found))
    draw(found, options.picture)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
