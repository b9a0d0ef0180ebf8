"""H100-hours to GenEval 0.95, by arithmetic: published numbers of updates, and this trainer's forwards.

    python benchmarks/gpu/hours.py     # prints the table, and writes it into docs/gpu/README.md

Forwards per image are those of the recipe (`flow-grpo train RECIPE --dry-run`), FLOPs per forward those of
SD3.5-M's layers, counted on the meta device. No GPU takes part: what share of its peak a run reaches is
an assumption, and two are printed.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from harness import markdown  # noqa: E402

from flow_trainer.doctor.estimate import forwards  # noqa: E402
from flow_trainer.models.architectures import ARCHITECTURES  # noqa: E402
from flow_trainer.models.memory import text_tokens  # noqa: E402
from flow_trainer.recipe import Recipe, load_recipe  # noqa: E402

DOCUMENT = ROOT / "docs" / "gpu" / "README.md"
BEGIN, END = "<!-- begin: benchmarks/gpu/hours.py -->", "<!-- end: hours -->"
H100_FLOPS = 989.4e12
"""Dense, 16 bits."""
SHARES = (0.2, 0.4)
"""Of that peak. The first is about what all kernels of the eager program allow, by the arithmetic above
the table; the second wants compiled blocks."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a source says of its way to GenEval 0.95 with SD3.5-M."""

    objective: str
    recipe: str
    updates: int | None
    """None: not published."""
    said: str


PUBLISHED = (
    Published(
        "Flow-GRPO", "sd35m_geneval", 5000, "more than 5,000 updates (2509.16117); 414 h, derived"
    ),
    Published("GRPO-Guard", "sd35m_geneval_guard", None, "no number for GenEval"),
    Published("AWM", "sd35m_geneval_awm", None, "8 times faster than Flow-GRPO, no number"),
    Published("DiffusionNFT", "sd35m_geneval_nft", 1000, "1,000 updates to 0.98; 180 h, derived"),
    Published("V-GRPO", "sd35m_geneval_vgrpo", 580, "580 updates where DiffusionNFT takes 1,700"),
    Published("EPG, PEPG", "sd35m_geneval_pepg", 360, "360 updates to 0.96; 90 h to 0.95"),
    Published("RAM", "sd35m_geneval_ram", 100, "up to 50 times fewer updates than Flow-GRPO"),
    Published(
        "DGPO", "sd35m_geneval_dgpo", None, "20 to 30 times faster than Flow-GRPO, no number"
    ),
    Published("CRD", "sd35m_ocr_crd", None, "fast and less reward hacking, no number"),
    Published("OPD", "sd35m_multi_opd", None, "teachers with the score come first; no number"),
)
"""Sources: the recipes' headers; the H100-hours are those of 2602.04663 (90, and its factors 4.6 and 2)."""


def forward_tflop(recipe: Recipe) -> float:
    """TFLOP of one forward of one image."""
    import diffusers

    from flow_trainer.models.families import FAMILIES
    from flow_trainer.models.flops import forward_flops

    m = recipe.model
    kind, config = ARCHITECTURES[m.path]
    family = importlib.import_module(FAMILIES[m.family]).FAMILY
    shape = (16, m.height // 8, m.width // 8)
    return forward_flops(getattr(diffusers, kind), config, family, m, shape, text_tokens(m)) / 1e12


def hours(flops: float, share: float) -> float:
    """H100-hours at this share of the peak."""
    return flops / (share * H100_FLOPS) / 3600


def table() -> str:
    recipes = [
        load_recipe(ROOT / "trainer" / "recipes" / f"{row.recipe}.toml") for row in PUBLISHED
    ]
    tflop = forward_tflop(recipes[0])
    rows = []
    for row, recipe in zip(PUBLISHED, recipes, strict=True):
        cost = forwards(recipe).total
        images = recipe.images_per_epoch // recipe.update.updates_per_epoch
        counted = ["–"] * (2 + len(SHARES))
        if row.updates is not None:
            total = row.updates * images * cost
            counted = [f"{row.updates:,}", f"{total / 1e6:.0f}"]
            counted += [f"{hours(total * tflop * 1e12, share):.0f}" for share in SHARES]
        rows.append(
            [f"{row.objective} (`{row.recipe}`)", f"{cost}", f"{images:,}", *counted, row.said]
        )
    shares = [f"H100-hours at {share:.0%}" for share in SHARES]
    header = [
        "objective (recipe)",
        "F per image",
        "images per update",
        "updates",
        "million F",
        *shares,
    ]
    return (
        f"{markdown([*header, 'the source says'], rows)}\n\nF: a forward of SD3.5-M at 512 pixels with 205 "
        f"text tokens, {tflop:.2f} TFLOP."
    )


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    new = f"{BEGIN}\n\n{table()}\n\n{END}"
    DOCUMENT.write_text(
        re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: new, text, flags=re.DOTALL),
        encoding="utf-8",
    )
    print(table())


if __name__ == "__main__":
    main()
