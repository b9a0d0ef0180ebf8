"""Memory, launches, bytes and FLOPs of every recipe at full size, without a GPU or weights.

    python benchmarks/fake_epoch.py                    # all recipes: minutes, each a fake run
    python benchmarks/fake_epoch.py sd35m_ocr          # some of them
    python benchmarks/fake_epoch.py --waits sd35m_ocr  # waits for the device; a CUDA build of torch

Recipes that differ only in what takes no memory share a run. Writes tests/golden/fake_epoch.json, to
which the estimate of `--dry-run` is held, and the tables of docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, markdown

from flow_trainer.doctor.estimate import GB
from flow_trainer.doctor.plan import Plan, plan, waits
from flow_trainer.models.architectures import Architecture, inspect
from flow_trainer.models.memory import memory
from flow_trainer.recipe import Recipe, load_recipe

RECIPES = ROOT / "trainer" / "recipes"
GOLDEN = ROOT / "tests" / "golden" / "fake_epoch.json"
DOCUMENT = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- begin: benchmarks/fake_epoch.py -->", "<!-- end -->"
PARTS = ("transformer", "vae", "training_state", "activations", "forward", "decode", "step")
DEVICES = (24, 48, 80)
"""GB of the cards that recipes are sized for."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a fake run depends on, as overrides."""
    m, u, s = recipe.model, recipe.update, recipe.sampling
    shape = ("path", "height", "width", "dtype", "tuning", "lora_rank", "max_sequence_length")
    model = {key: getattr(m, key) for key in (*shape, "gradient_checkpointing")}
    guided = m.guidance > 1 and m.family != "flux"
    return (
        {f"model.{key}": value for key, value in model.items()}
        | {
            "model.guidance": 4.5 if guided else 1.0,
            "sampling.micro_batch": s.micro_batch,
            "sampling.decode_batch": min(s.decode_batch, s.micro_batch),
            "update.steps_per_forward": u.steps_per_forward,
            "update.objective": _shape(recipe),
            "update.optimizer": u.optimizer,
            "update.beta": 0.01 if u.beta > 0 else 0.0,
            "update.kl": "velocity" if u.beta > 0 else "none",
            "ema.enabled": recipe.ema.enabled,
        }
        | (_through_pixels(recipe) if u.trains_on == "gradients" else {})
        | _others(recipe)
    )


def _shape(recipe: Recipe) -> str:
    """An objective of the same shape."""
    u = recipe.update
    if u.chosen(recipe.sampling.group_size) < recipe.sampling.group_size:
        return u.objective
    if (
        u.whole_groups or recipe.teachers or u.trains_on == "data"
    ):  # their other settings go with no other objective
        return u.objective
    return "nft" if u.forward_process else "clip"


def _others(recipe: Recipe) -> dict[str, Any]:
    """What computes beside the trained model: teachers, and a reference with guidance of its own."""
    found: dict[str, Any] = {
        f"prompts.sources.{name}.teacher": teacher.adapter
        for name, teacher in recipe.teachers.items()
    }
    if recipe.data is not None:
        key = "data.images" if recipe.data.pairs is None else "data.pairs"
        found |= {key: "somewhere", "data.guidance": recipe.data.guidance}
    if recipe.forward.reference_guidance is not None:
        found["forward.reference_guidance"] = recipe.forward.reference_guidance
    return found


def _through_pixels(recipe: Recipe) -> dict[str, Any]:
    return {
        "update.objective": recipe.update.objective,
        "update.updates_per_epoch": 1,
        "update.gradient_batch": recipe.update.gradient_batch,
        "sampling.window.size": recipe.sampling.window.size,
    }


def run_all(names: list[str], known: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The runs so far after each new one; those of `known` with the same settings are kept."""
    found = {json.dumps(run["settings"]): {**run, "recipes": []} for run in known}
    for path in published():
        recipe = load_recipe(path)
        key = json.dumps(settings(recipe))
        if key not in found:
            if names and path.stem not in names:
                continue
            began = time.process_time()
            found[key] = {"settings": settings(recipe), "recipes": [], **_figures(plan(recipe))}
            print(f"{path.stem}: {time.process_time() - began:.0f} s of CPU", flush=True)
        found[key]["recipes"].append(path.stem)
        yield [run for run in found.values() if run["recipes"]]


def published() -> list[Path]:
    return sorted(path for path in RECIPES.glob("*.toml") if not path.stem.startswith("tiny_sd3"))


def _figures(found: Plan) -> dict[str, Any]:
    sections = {
        name: {
            "calls": s.calls,
            "launches": s.launches,
            "bytes": int(s.bytes),
            "flops": int(s.flops),
        }
        for name, s in found.sections.items()
        if name != "start"
    }
    return {"bytes": {part: getattr(found, part) for part in PARTS}, "sections": sections}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names (default: all)")
    parser.add_argument("--fresh", action="store_true", help="run again what is on record")
    parser.add_argument("--waits", action="store_true", help="print where it waits, write nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    unknown = set(options.recipes) - {path.stem for path in published()}
    if unknown:
        parser.error(f"no recipe {', '.join(sorted(unknown))} in {RECIPES}")
    if options.waits:
        for name in options.recipes:
            print(f"{name}\n{waits_table(load_recipe(RECIPES / f'{name}.toml'))}\n")
        return
    known = json.loads(GOLDEN.read_text())["runs"] if GOLDEN.exists() and not options.fresh else []
    for runs in run_all(options.recipes, known):
        GOLDEN.write_text(json.dumps({"torch": torch.__version__, "runs": runs}, indent=1) + "\n")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    tables = document(json.loads(GOLDEN.read_text())["runs"])
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def document(runs: list[dict[str, Any]]) -> str:
    """The tables of docs/memory.md."""
    recipes = {path.stem: load_recipe(path) for path in published()}
    by_settings = {json.dumps(run["settings"]): run for run in runs}
    by_recipe = {
        name: by_settings[json.dumps(settings(recipe))]
        for name, recipe in recipes.items()
        if json.dumps(settings(recipe)) in by_settings
    }
    rows, worst = [], (0.0, "")
    for name, run in sorted(by_recipe.items()):
        recipe = recipes[name]
        m = recipe.model
        architecture = inspect(m.path, m.family, m.lora_rank)
        assert architecture is not None
        found = memory(recipe, architecture)
        seen = _peak(run["bytes"]) + found.trajectories
        said = found.training_peak - found.text_encoders * found.encoders_stay
        worst = max(worst, (abs(said / seen - 1), name))
        with_encoders = seen + found.text_encoders * found.encoders_stay
        peak = max(with_encoders, found.loading_peak)
        rows.append(
            [
                f"`{name}`",
                f"{seen / GB:.1f}",
                f"{said / GB:.1f}",
                f"{said / seen - 1:+.1%}",
                f"{peak / GB:.1f}",
                _card(peak) if recipe.sharding == "none" else _divided(recipe, architecture),
            ]
        )
    header = ["recipe", "fake run, GB", "estimate, GB", "off by", "with text encoders, GB", "fits"]
    return (
        f"{markdown(header, rows)}\n\nLargest deviation: {worst[0]:.1%} (`{worst[1]}`). Fake runs "
        f"with torch {torch.__version__.split('+')[0]}. No fake run on record: "
        f"{', '.join(sorted(set(recipes) - set(by_recipe))) or 'none'}."
    )


def _peak(seen: dict[str, int]) -> float:
    resident = seen["transformer"] + seen["vae"] + seen["training_state"]
    return resident + max(seen[part] for part in ("activations", "forward", "decode", "step"))


def _card(peak: float) -> str:
    fitting = [size for size in DEVICES if peak <= 0.9 * size * GB]
    return f"{fitting[0]} GB" if fitting else "none of one GPU"


def _divided(recipe: Recipe, architecture: Architecture) -> str:
    """A sharded recipe on eight GPUs, by the estimate."""
    peak = memory(recipe, architecture, 8).peak
    return f"8 x {_card(peak)} ({peak / GB:.0f} each, estimate)"


def waits_table(recipe: Recipe) -> str:
    rows = [
        [name, kind, place, str(count)]
        for name, section in waits(recipe).items()
        for kind, places in (("wait", section.syncs), ("copy", section.copies))
        for place, count in places.items()
    ]
    return markdown(["during", "what", "where", "times"], rows)


if __name__ == "__main__":
    main()
