"""What each `flow-grpo` command does once its arguments are parsed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from flow_trainer.config import load_recipe
from flow_trainer.errors import Interrupted


def train(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.out or Path("runs") / f"{recipe.name}-{recipe.seed}"
    from flow_trainer.train import train as run

    try:
        summary = run(recipe, folder, resume=arguments.resume)
    except Interrupted as error:
        print(f"{error}; continue with --resume", file=sys.stderr)
        return 0
    print(json.dumps(summary, indent=2))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.standalone import evaluate_checkpoint

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


def doctor(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    from flow_trainer.doctor import examine

    healthy = True
    for check in examine(recipe, arguments.out or Path("runs")):
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.message}", flush=True)
        healthy = healthy and check.ok
    return 0 if healthy else 1


def report(arguments: argparse.Namespace) -> int:
    from flow_trainer.report import write_report

    print(write_report(arguments.run))
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


COMMANDS = {command.__name__: command for command in (train, evaluate, doctor, report, demo)}
