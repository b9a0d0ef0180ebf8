"""What each `flow-grpo` command does once its arguments are parsed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError, Interrupted
from flow_trainer.recipe import load_recipe
from flow_trainer.recipe.changes import RECIPE_FILE
from flow_trainer.recipe.checks import busy_share


def train(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.parallel.world import is_main_process

    if arguments.dry_run:
        from flow_trainer.doctor.estimate import dry_run

        busy_share(recipe, arguments.gpus)
        print("\n".join(dry_run(recipe, arguments.gpus)))
        return 0
    folder = (
        arguments.out or _own_folder(arguments) or Path("runs") / f"{recipe.name}-{recipe.seed}"
    )
    from flow_trainer.loop.train import train as run

    try:
        summary = run(recipe, folder, resume=arguments.resume)
    except Interrupted as error:
        if is_main_process():
            print(f"{error}; continue with --resume", file=sys.stderr)
        return 0
    if is_main_process():
        print(json.dumps(summary, indent=2))
    return 0


def _own_folder(arguments: argparse.Namespace) -> Path | None:
    """The run whose recipe.json is resumed."""
    is_runs = arguments.resume and arguments.recipe.name == RECIPE_FILE
    return arguments.recipe.parent if is_runs else None


def evaluate(arguments: argparse.Namespace) -> int:
    if arguments.suite:
        from flow_trainer.evaluation.arguments import evaluate_suites

        return evaluate_suites(arguments)
    from flow_trainer.evaluation.arguments import refuse_suite_arguments

    refuse_suite_arguments(arguments)
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.evaluation.standalone import evaluate_checkpoint

    summary = evaluate_checkpoint(
        recipe,
        split=arguments.split,
        checkpoint=arguments.checkpoint,
        num_steps=arguments.steps,
        images_per_prompt=arguments.images,
        out=arguments.out,
    )
    print(json.dumps(summary, indent=2))
    return 0


def curate(arguments: argparse.Namespace) -> int:
    from flow_trainer.curation.arguments import run_curate

    return run_curate(arguments)


def doctor(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.doctor.examine import examine

    healthy = True
    for check in examine(recipe, arguments.out or Path("runs"), arguments.gpus):
        print(f"{check.word:<4}  {check.name}: {check.message}", flush=True)
        healthy = healthy and check.ok
    return 0 if healthy else 1


def recipes(arguments: argparse.Namespace) -> int:
    from flow_trainer.doctor.recipes import listing

    print("\n".join(listing(arguments.folder)))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.doctor.plan import plan_lines

    for line in plan_lines(recipe):
        print(line, flush=True)
    return 0


def report(arguments: argparse.Namespace) -> int:
    from flow_trainer.record.report import write_report

    print(write_report(*arguments.runs, out=arguments.out))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    from flow_trainer.demo import run_demo

    return run_demo(
        out=arguments.out,
        seed=arguments.seed,
        recipe=arguments.recipe,
        overrides=arguments.set,
        keep=arguments.keep,
    )


def prompts(arguments: argparse.Namespace) -> int:
    from flow_trainer.recipe.prompt_sets import as_lines, write_rows

    rows = _ocr_prompts(arguments) if arguments.kind == "ocr" else _geneval_prompts(arguments)
    if arguments.out is None:
        sys.stdout.write(as_lines(rows))
        return 0
    write_rows(rows, arguments.out, force=arguments.force)
    print(f"{len(rows)} prompts in {arguments.out}")
    return 0


def _geneval_prompts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from flow_trainer.recipe.prompt_sets import geneval

    if arguments.training is None:
        samples = geneval.BENCHMARK_SAMPLES if arguments.samples is None else arguments.samples
        return geneval.benchmark(arguments.seed, samples)
    if arguments.samples is not None:
        raise ConfigError("--samples belongs to the benchmark; --training N says how many lines")
    return geneval.training(arguments.training, arguments.seed)


def _ocr_prompts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from flow_trainer.recipe.prompt_sets import ocr

    count = ocr.COUNTS[arguments.split] if arguments.count is None else arguments.count
    return ocr.prompts(arguments.split, count, arguments.seed)


COMMANDS = {
    command.__name__: command
    for command in (train, evaluate, curate, doctor, plan, recipes, report, prompts, demo)
}
