"""What float16 and bfloat16 leave of every published recipe's gradient, without and with loss scaling.

    python benchmarks/trainer/precision.py              # all recipes: two minutes of CPU
    python benchmarks/trainer/precision.py sd35m_ocr    # some of them, printed only

Each recipe as it is published, its latents, divisor, objective and steps, with a model of SD3's or
FLUX's own classes whose layers are narrow and whose weights are random; `flow-grpo doctor` measures
the same of the real weights. Types are emulated by the CPU's autocast. Recipes that differ in nothing
that matters here share a row. Writes the tables of docs/precision.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch

from flow_trainer.loop.precision import Precision
from flow_trainer.loop.updates.loss_scale import loss_pairs
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.recipe.prompts import Prompt

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / name) for name in ("benchmarks", "tests/support", "tests/support/checkpoints")
]
from harness import cpu_model, markdown  # noqa: E402

from published_precision import RECIPES, TEXT_TOKENS, NarrowModels, Output, measured  # noqa: E402

DOCUMENT = ROOT / "docs" / "precision.md"
BEGIN, END = "<!-- begin: benchmarks/trainer/precision.py -->", "<!-- end -->"
PROMPT = Prompt("red sign")
VARIANTS = {"sd35m_ocr with objective dppo": ("sd35m_ocr", "update.objective=dppo")}
"""Objectives that no recipe has: by what the table calls them, recipe and settings."""
IRRELEVANT = {
    "sampling": {"prompts_per_epoch", "group_size", "micro_batch", "decode_batch", "candidates"}
    | {"scout_steps"},
    "update": {"updates_per_epoch", "keep", "optimizer", "max_grad_norm", "weight_decay"}
    | {"warmup_updates"},
    "model": {"compile", "gradient_checkpointing", "prompt_cache_gb", "offload", "lora_rank"}
    | {"lora_alpha"},
}
"""Settings that change nothing here, or act through the divisor alone."""


@dataclass
class Row:
    names: list[str]
    recipe: Recipe
    plain: tuple[Precision, Output]
    """Without loss scaling."""
    scaled: tuple[Precision, Output]
    other: Precision | None
    """In the other type of 16 bits; None for FLUX, which float16 overflows."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names (default: all)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    cases = {name: (name,) for name in published()} | VARIANTS
    unknown = set(options.recipes) - set(cases)
    if unknown:
        parser.error(f"no recipe {', '.join(sorted(unknown))} in {RECIPES}")
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = NarrowModels(Path(folder))
        for name in options.recipes or cases:
            _add(rows, models, name, cases[name])
            print(f"{name}: done", flush=True)
    tables = document(list(rows.values()))
    print(tables)
    if not options.recipes:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def published() -> list[str]:
    """Recipes of the families that have a narrow model, and that draw samples to measure with."""
    found = {name: load_recipe(_path(name)) for name in _all_recipes()}
    return [
        name
        for name, recipe in found.items()
        if recipe.model.family in TEXT_TOKENS and recipe.update.trains_on != "data"
    ]


def _all_recipes() -> list[str]:
    return sorted(
        path.stem for path in RECIPES.glob("*.toml") if not path.stem.startswith("tiny_sd3")
    )


def _path(name: str) -> Path:
    return RECIPES / f"{name}.toml"


def _add(rows: dict[str, Row], models: NarrowModels, name: str, case: tuple[str, ...]) -> None:
    key = _matters(load_recipe(_path(case[0]), case[1:]))
    if key in rows:
        rows[key].names.append(name)
        return
    recipe = models.recipe(*case)
    plain = measured(recipe, PROMPT, 1.0)
    scaled = measured(recipe, PROMPT) if recipe.model.dtype == "float16" else plain
    other = None
    if recipe.model.family != "flux":
        dtype = "bfloat16" if recipe.model.dtype == "float16" else "float16"
        other, _ = measured(models.recipe(*case, f"model.dtype={dtype}"), PROMPT)
    rows[key] = Row([name], recipe, plain, scaled, other)


def _matters(recipe: Recipe) -> str:
    """What of a recipe the measurement depends on."""
    sections = {
        section: getattr(recipe, section).model_dump(mode="json", exclude=IRRELEVANT.get(section))
        for section in ("model", "sampling", "update", "forward")
    }
    teachers = [teacher.guidance for teacher in recipe.teachers.values()][:1]
    return json.dumps([sections, recipe.advantage.clip, loss_pairs(recipe), teachers])


def document(rows: list[Row]) -> str:
    """The tables of docs/precision.md."""
    zeros = ["zeros at the output", "zeros", "cosine"]
    header = ["recipes", "objective", "elements x pairs", "type"]
    header += [f"{name}, unscaled" for name in zeros] + ["loss scale", *zeros]
    ratio_header = ["recipes", "clip_range", "error in float16", "error in bfloat16"]
    ratio_header += ["cosine in float16", "cosine in bfloat16"]
    ratios = [_ratio_row(row) for row in rows if row.scaled[0].log_ratio_error is not None]
    return (
        f"{markdown(header, map(_gradient_row, rows))}\n\n{markdown(ratio_header, ratios)}\n\n"
        f"`python benchmarks/trainer/precision.py`, {datetime.date.today()}, {cpu_model()}, "
        f"torch {torch.__version__}. Not measured: "
        f"{', '.join(sorted(set(_all_recipes()) - set(published()))) or 'none'}."
    )


def _names(row: Row) -> str:
    return ", ".join(f"`{name}`" if " " not in name else name for name in row.names)


def _gradient_row(row: Row) -> list[str]:
    (plain, at_output), (scaled, at_output_scaled) = row.plain, row.scaled
    m = row.recipe.model
    elements = 16 * (m.height // 2) * (m.width // 2)
    is_scaled = m.dtype == "float16"
    return [
        _names(row),
        row.recipe.update.objective,
        f"{elements:,} x {loss_pairs(row.recipe):,}",
        scaled.dtype,
        *(_cells(plain, at_output) if is_scaled else ["", "", ""]),
        f"2^{math.log2(scaled.loss_scale):.0f}" if is_scaled else "none",
        *_cells(scaled, at_output_scaled),
    ]


def _ratio_row(row: Row) -> list[str]:
    found = {f.dtype: f for f in (row.scaled[0], row.other) if f is not None}
    clip_range = row.recipe.update.clip_range
    types = ("float16", "bfloat16")
    return [
        _names(row),
        f"{clip_range:g}",
        *(_error(found[dtype], clip_range) if dtype in found else "" for dtype in types),
        *(f"{found[dtype].cosine:.4f}" if dtype in found else "" for dtype in types),
    ]


def _cells(found: Precision, output: Output) -> list[str]:
    return [_share(output.share), _share(found.zeros), f"{found.cosine:.4f}"]


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def _error(found: Precision, clip_range: float) -> str:
    assert found.log_ratio_error is not None
    return f"{found.log_ratio_error:.1e} ({found.log_ratio_error / clip_range:.2g} of the clip)"


if __name__ == "__main__":
    main()
