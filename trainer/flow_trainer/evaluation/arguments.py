"""The part of `flow-grpo evaluate`'s command line that is about suites."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_SEED = 42


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    suites = parser.add_argument_group(
        "suites", "the paper's tables, with intervals; what is scored already is kept"
    )
    suites.add_argument(
        "--suite",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="geneval, ocr, pickscore, drawbench, unseen-objects, unseen-counting (several)",
    )
    suites.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="MODEL",
        help="also measure this one with the same noise, and the paired difference: base, a "
        "checkpoint, or an adapter's folder or hub name (repeatable)",
    )
    suites.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="SUITE=SOURCE",
        help="a file, or hf:OWNER/NAME@SPLIT#COLUMN (repeatable)",
    )
    suites.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a reward service beside the recipe's own (repeatable)",
    )
    suites.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="of the initial noise (default: %(default)s)"
    )
    suites.add_argument(
        "--own-sampling",
        action="store_true",
        help="the recipe's guidance and evaluation steps in place of the published protocol's",
    )
    suites.add_argument("--keep-images", action="store_true", help="as PNG files under --out")
    suites.add_argument(
        "--wait-ready",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for a reward that still loads, before its columns stay empty (default: %(default)g)",
    )


def refuse_suite_arguments(arguments: argparse.Namespace) -> None:
    """For an evaluation without a suite, which would not read them. Raises ConfigError."""
    from flow_trainer.errors import ConfigError

    given = {
        "--against": arguments.against,
        "--prompts": arguments.prompts,
        "--reward": arguments.reward,
        "--seed": arguments.seed != DEFAULT_SEED,
        "--own-sampling": arguments.own_sampling,
        "--keep-images": arguments.keep_images,
    }
    for flag, value in given.items():
        if value:
            raise ConfigError(
                f"{flag} belongs to a suite: name one with --suite, or leave {flag} out"
            )


def evaluate_suites(arguments: argparse.Namespace) -> int:
    from flow_trainer.evaluation.run import Request, run_suites
    from flow_trainer.parallel.world import is_main_process
    from flow_trainer.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.set)
    request = Request(
        suites=arguments.suite,
        checkpoint=arguments.checkpoint,
        against=arguments.against,
        prompts=arguments.prompts,
        rewards=arguments.reward,
        out=arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        own_sampling=arguments.own_sampling,
        keep_images=arguments.keep_images,
        ready_s=arguments.wait_ready,
    )
    for table in run_suites(recipe, request):
        if is_main_process():
            print(table.as_markdown())
    out: Path = arguments.out or Path("runs") / f"evaluation-{recipe.name}"
    if is_main_process():
        print(f"tables and scores: {out}")
    return 0
