"""`flow-grpo`: train, evaluate, curate, doctor, plan, recipes, report, prompts, demo. Heavy imports wait
until a command runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flow_trainer.curation.arguments import add_curate_arguments
from flow_trainer.evaluation.arguments import add_suite_arguments

INTERRUPTED = 130
OURS = ("flow_trainer", "reward_api", "reward_services")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # Hints about optional packages; what matters to a run is checked and said by ourselves.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # Threads that spin at a barrier keep the cores from whatever else runs here (read when torch loads).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        from flow_trainer.commands import COMMANDS
        from flow_trainer.errors import TrainerError
        from reward_api import RewardError

        try:
            return COMMANDS[arguments.command](arguments)
        except (TrainerError, RewardError) as error:
            return _failed(str(error))
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            return _failed(f"{error.strerror or error}{where}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        return _failed(f"{error.name} is not installed: pip install 'flow-rewards[trainer]'")
    except KeyboardInterrupt:
        return INTERRUPTED


def _failed(message: str) -> int:
    """Says why, and gives the exit status."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    rank = f" (rank {os.environ.get('RANK')})" if several else ""
    print(f"flow-grpo{rank}: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo",
        description="Flow-GRPO: online RL for flow-matching text-to-image models.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe against its rewards")
    _recipe_arguments(train)
    train.add_argument("--out", type=_path, help="run folder (default: runs/NAME-SEED)")
    train.add_argument("--dry-run", action="store_true", help="print sizes, cost and memory only")
    _gpus_argument(train)
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")

    evaluate = commands.add_parser("evaluate", help="score a checkpoint with the ODE sampler")
    _recipe_arguments(evaluate)
    evaluate.add_argument(
        "--checkpoint", type=_path, help="RUN/best or RUN/checkpoints/epoch_N (default: base model)"
    )
    evaluate.add_argument("--split", default="heldout", choices=["heldout", "validation", "train"])
    evaluate.add_argument(
        "--steps", type=_positive, help="ODE steps (default: evaluation.num_steps)"
    )
    evaluate.add_argument("--images", type=_positive, default=1, help="images per prompt")
    evaluate.add_argument("--out", type=_path, help="folder for the results")
    add_suite_arguments(evaluate)

    add_curate_arguments(
        commands.add_parser(
            "curate",
            help="score image-text pairs, keep what passes, write train, validation and test",
            description="Scores image-text pairs through the reward services and writes those that pass.",
        )
    )

    doctor = commands.add_parser("doctor", help="check a recipe: services, model, ratio, disk")
    _recipe_arguments(doctor)
    doctor.add_argument("--out", type=_path, help="run folder whose disk is checked")
    _gpus_argument(doctor)

    plan = commands.add_parser(
        "plan",
        help="run a micro-batch at full size on a fake GPU: memory, launches, bytes and FLOPs",
        description="Runs a micro-batch through sampling, decoding, replay and update at the real "
        "model's full size, without GPU or weights: a minute or two of one core.",
    )
    _recipe_arguments(plan)

    recipes = commands.add_parser("recipes", help="list recipes: source, cost and evidence")
    recipes.add_argument("folder", type=Path, nargs="?", help="(default: this checkout's)")

    report = commands.add_parser(
        "report",
        help="one HTML file about a run, or several compared",
        description="Writes one HTML file without outside requests: curves (runs of one recipe with "
        "several seeds as a band), alarms, pictures, timings, and what differs between the recipes.",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    report.add_argument(
        "--out",
        type=_path,
        metavar="FILE",
        help="(default: report.html in the run's folder, or in the one that several have in common)",
    )

    _prompts_parser(commands.add_parser("prompts", help="write GenEval or text-rendering prompts"))

    demo = commands.add_parser("demo", help="start the OCR reward, train the tiny model, report")
    demo.add_argument("--seed", type=int, default=42)
    demo.add_argument("--out", type=_path, default=Path("runs/demo"))
    demo.add_argument("--recipe", type=Path, help="another recipe with an `ocr` reward")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    demo.add_argument("--keep", action="store_true", help="keep an existing run folder: resume it")
    return parser


def _path(text: str) -> Path:
    """An empty one would be the current folder: a variable of the shell that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: name a file or folder")
    return Path(text)


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"flow-grpo {version('flow-rewards')}")
        parser.exit()


def _prompts_parser(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    geneval = kinds.add_parser(
        "geneval",
        help="GenEval's metadata lines",
        description="Writes the 553 lines of the GenEval benchmark, or a training set without them.",
    )
    geneval.add_argument(
        "--training",
        type=int,
        metavar="N",
        help="N lines to train on: position, counting, color_attr, colors, two_object as 7:5:3:1:1",
    )
    geneval.add_argument(
        "--samples", type=int, help="draws per task of the benchmark (default: 100, the published)"
    )
    _file_arguments(geneval, seed=43)

    ocr = kinds.add_parser(
        "ocr",
        help="scenes with a text in double quotes",
        description="Writes text-rendering prompts. The texts of train and test have no noun in common.",
    )
    ocr.add_argument("--split", default="train", choices=["train", "test"])
    ocr.add_argument("--count", type=int, help="prompts (default: 20000 for train, 1000 for test)")
    _file_arguments(ocr, seed=0)


def _file_arguments(parser: argparse.ArgumentParser, *, seed: int) -> None:
    parser.add_argument("--seed", type=int, default=seed, help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=_path, help="JSONL, or a prompt per line in a .txt (default: JSONL on stdout)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="trainer/recipes/*.toml, or a run's recipe.json")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. --set update.learning_rate=1e-4 (repeatable)",
    )


def _gpus_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        type=_positive,
        default=1,
        metavar="N",
        help="estimate the memory of a run on N GPUs, by nodes of 8 (default: 1)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
