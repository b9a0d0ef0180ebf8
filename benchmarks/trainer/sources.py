"""Two sources of prompts with rewards of their own, and a student of two teachers, on the tiny model.

    python benchmarks/trainer/sources.py [--runs runs/sources] [--seed 42]

A mixed run trains one model on both sources of tiny_sd3_sources.toml: words, which the OCR reward reads,
and numbers, whose images only have to be small as JPEG files. Then an adapter is trained on each
source alone, and a third, the student, learns from both by on-policy distillation (opd) without seeing a
reward. Prints held-out scores before and after. What has a summary is not run again; Ctrl-C saves. In an
environment with the `demo` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_trainer.demo import PROCESS_ENV, ocr_service, reward_service

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "tiny_sd3_sources.toml"
SOURCES = {"words": "ocr", "numbers": "jpeg"}
NUMBERS = {"train": 200, "heldout": 32}

ADAPTER = {"tuning": "lora", "lora_rank": 32, "lora_alpha": 64}
TEACHER = {"update": {"learning_rate": 3e-3}}
STUDENT = {
    "sampling": {"prompts_per_epoch": 16, "group_size": 4},
    "update": {"objective": "opd", "learning_rate": 3e-3, "trained_steps": None},
}
STUDENT_EPOCHS = 40


def write_numbers(folder: Path) -> dict[str, str]:
    """Prompts with four digits, which no image of the pretraining has. Files by split."""
    drawn = iter(random.Random("numbers").sample(range(1000, 10000), sum(NUMBERS.values())))
    files = {}
    for split, count in NUMBERS.items():
        path = folder / f"numbers_{split}.txt"
        path.write_text("".join(f'a sign that says "{next(drawn)}"\n' for _ in range(count)))
        files[split] = str(path)
    return files


def recipe(
    numbers: Mapping[str, str], urls: Mapping[str, str], seed: int, **changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe with these changes by section, its files by absolute path."""
    found: dict[str, Any] = tomllib.loads(RECIPE.read_text())
    found["seed"] = seed
    found["model"]["path"] = str((HERE / found["model"]["path"]).resolve())
    sources = found["prompts"]["sources"]
    sources["numbers"] |= numbers
    sources["words"] |= {
        split: str((HERE / sources["words"][split]).resolve()) for split in NUMBERS
    }
    for name, url in urls.items():
        found["rewards"][name]["url"] = url
    for section, values in changes.items():
        found[section] |= values
    if found["update"]["objective"] != "nft":
        del found["forward"]
    return found


def only(source: str, found: dict[str, Any]) -> dict[str, Any]:
    """The recipe with one source and its reward."""
    found["prompts"]["sources"] = {source: found["prompts"]["sources"][source]}
    found["rewards"] = {SOURCES[source]: found["rewards"][SOURCES[source]]}
    return found


def train(folder: Path, found: Mapping[str, Any]) -> None:
    """Raises CalledProcessError; its log is in the folder."""
    if (folder / "summary.json").exists():
        return
    print(f"training {folder.name} ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given.json"
    given.write_text(json.dumps(found, indent=2))
    command = [sys.executable, "-m", "flow_trainer", "train", str(given), "--out", str(folder)]
    with (folder / "log.txt").open("ab") as log:
        subprocess.run(
            [*command, "--resume"],
            check=True,
            stdout=log,
            stderr=log,
            env={**os.environ, **PROCESS_ENV, "OMP_NUM_THREADS": "1"},
        )


def heldout(folder: Path, name: str, source: str) -> float:
    """Mean held-out score of one source, the JPEG's in kB: `name` is before or after."""
    said = json.loads((folder / "heldout" / f"{name}.json").read_text())
    return said["ocr"] if source == "words" else said["jpeg.incompressibility_kb"]


def table(runs: Path) -> str:
    """Markdown."""
    untrained = [heldout(runs / "mixed", "before", source) for source in SOURCES]
    teachers = [heldout(runs / f"teacher-{source}", "after", source) for source in SOURCES]
    student = [heldout(runs / "student", "after", source) for source in SOURCES]
    rows = {
        "untrained": untrained,
        "mixed run, both sources": [heldout(runs / "mixed", "after", s) for s in SOURCES],
        "teacher of each": teachers,
        "student of both": student,
    }
    lines = ["| run | words, OCR | numbers, kB as JPEG |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} |" for name, values in rows.items()
    ]
    gains = [(s - u) / (t - u) for s, t, u in zip(student, teachers, untrained, strict=True)]
    return "\n".join(
        [*lines, f"| share of the teacher's gain | {' | '.join(f'{g:.0%}' for g in gains)} |"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/sources"))
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    runs: Path = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    numbers = write_numbers(runs)
    with (
        ocr_service(runs / "ocr.log") as ocr,
        reward_service("jpeg", runs / "jpeg.log") as jpeg,
    ):
        common = (numbers, {"ocr": ocr, "jpeg": jpeg}, options.seed)
        train(runs / "mixed", recipe(*common))
        for source in SOURCES:
            train(
                runs / f"teacher-{source}", only(source, recipe(*common, model=ADAPTER, **TEACHER))
            )
        student = recipe(*common, model=ADAPTER, **STUDENT)
        student["epochs"] = STUDENT_EPOCHS
        for source, settings in student["prompts"]["sources"].items():
            last = max((runs / f"teacher-{source}" / "checkpoints").iterdir())
            settings["teacher"] = str(last / "adapter")
        train(runs / "student", student)
    print(table(runs))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
