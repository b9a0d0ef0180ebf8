"""`flow-grpo recipes`: every recipe with its source, cost and evidence, as its header says them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flow_trainer.doctor.estimate import forwards
from flow_trainer.errors import ConfigError
from flow_trainer.recipe import load_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
EVIDENCE = ("run at full size", "dry run and fake run", "figures of the original")
"""What a recipe's numbers rest on: a training run of it here; its arithmetic and a run of its shapes
(benchmarks/fake_epoch.py); what the original's authors published. Several are joined by a semicolon."""


@dataclass(frozen=True, slots=True)
class Listed:
    name: str
    images: int
    """Per epoch: sampled or, where nothing is, of [data]."""
    forwards: int
    """Of the transformer, per image, the backward counted in them."""
    evidence: str
    source: str


def listed(path: Path) -> Listed:
    """What a recipe says of itself. Raises ConfigError for one that names no evidence."""
    recipe = load_recipe(path)
    header = [line[1:].strip() for line in _header(path)]
    lines = [line.removeprefix("Evidence: ") for line in header if line.startswith("Evidence: ")]
    said = lines[0].split("; ") if lines else []
    if not said or any(re.sub(r" \(.*\)$", "", part) not in EVIDENCE for part in said):
        raise ConfigError(
            f"{path}: needs a header line `# Evidence: ...` of {', '.join(EVIDENCE)}; several are "
            "joined by `; `, and (...) may say more"
        )
    images = recipe.images_taken
    return Listed(recipe.name, images, forwards(recipe).total, lines[0], header[0])


def listing(folder: Path | None) -> Iterator[str]:
    """A line per recipe of a folder (default: those of this checkout, or of the image) under a line of
    titles. Raises ConfigError when there is none."""
    folder = folder or (FOLDER if FOLDER.is_dir() else Path("recipes"))
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise ConfigError(f"no recipe (*.toml) in {folder}: name the folder that holds them")
    rows = [("recipe", "images", "F", "evidence", "source")]
    rows += [
        (r.name, str(r.images), str(r.forwards), r.evidence, r.source) for r in map(listed, paths)
    ]
    name, images, cost, evidence = (max(len(row[k]) for row in rows) for k in range(4))
    for row in rows:
        yield (
            f"{row[0]:<{name}}  {row[1]:>{images}}  {row[2]:>{cost}}  {row[3]:<{evidence}}  {row[4]}"
        )
    yield ""
    yield "images: per epoch. F: transformer forwards per image, the backward counted in them."


def _header(path: Path) -> Iterator[str]:
    """The comment lines at the top."""
    try:
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line
