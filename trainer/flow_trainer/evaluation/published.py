"""The paper's figures, to print beside one's own: Flow-GRPO, arXiv 2505.05470."""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2505.05470"


@dataclass(frozen=True, slots=True)
class Published:
    """One row of a published table."""

    table: str
    """A suite's name, or `tasks`: every suite's metric in one row."""
    family: str
    model: str
    values: dict[str, float]
    """By the column's key."""
    source: str


_GENEVAL = (
    "overall",
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
_TASKS = (
    "geneval",
    "ocr",
    "pickscore",
    "drawbench.aesthetic",
    "drawbench.deqa",
    "drawbench.imagereward",
    "drawbench.pickscore",
    "drawbench.unifiedreward",
)

# table, its number in the paper, columns, and rows of (family, model, figures in the columns' order)
_TABLES: tuple[tuple[str, str, tuple[str, ...], tuple[tuple[str, str, str], ...]], ...] = (
    (
        "geneval",
        "Table 1",
        _GENEVAL,
        (
            ("sd3", "SD3.5-M", "0.63 0.98 0.78 0.50 0.81 0.24 0.52"),
            ("sd3", "SD3.5-M + Flow-GRPO", "0.95 1.00 0.99 0.95 0.92 0.99 0.86"),
            ("sd3", "SD3.5-L", "0.71 0.98 0.89 0.73 0.83 0.34 0.47"),
            ("flux", "FLUX.1-dev", "0.66 0.98 0.81 0.74 0.79 0.22 0.45"),
        ),
    ),
    (
        "unseen-objects",
        "Table 4",
        _GENEVAL,
        (
            ("sd3", "SD3.5-M", "0.64 0.96 0.73 0.53 0.87 0.26 0.47"),
            ("sd3", "SD3.5-M + Flow-GRPO", "0.90 1.00 0.94 0.86 0.97 0.84 0.77"),
        ),
    ),
    (
        "unseen-counting",
        "Table 4",
        ("5-6", "12"),
        (
            ("sd3", "SD3.5-M", "0.13 0.02"),
            ("sd3", "SD3.5-M + Flow-GRPO", "0.48 0.12"),
        ),
    ),
    (
        "tasks",
        "Table 2",
        _TASKS,
        (
            ("sd3", "SD3.5-M", "0.63 0.59 21.72 5.39 4.07 0.87 22.34 3.33"),
            ("sd3", "+ GenEval, no KL", "0.95 - - 4.93 2.77 0.44 21.16 2.94"),
            ("sd3", "+ GenEval, KL", "0.95 - - 5.25 4.01 1.03 22.37 3.51"),
            ("sd3", "+ OCR, no KL", "- 0.93 - 5.13 3.66 0.58 21.79 3.15"),
            ("sd3", "+ OCR, KL", "- 0.92 - 5.32 4.06 0.95 22.44 3.42"),
            ("sd3", "+ PickScore, no KL", "- - 23.41 6.15 4.16 1.24 23.56 3.57"),
            ("sd3", "+ PickScore, KL", "- - 23.31 5.92 4.22 1.28 23.53 3.66"),
        ),
    ),
    (
        "tasks",
        "Table 7",
        _TASKS[3:],
        (
            ("flux", "FLUX.1-dev", "5.71 4.31 0.85 22.62 3.65"),
            ("flux", "+ PickScore", "6.02 4.24 1.32 23.97 3.81"),
        ),
    ),
)

PUBLISHED = tuple(
    Published(
        table,
        family,
        model,
        {
            column: float(figure)
            for column, figure in zip(columns, figures.split(), strict=True)
            if figure != "-"
        },
        f"{PAPER}, {number}",
    )
    for table, number, columns, rows in _TABLES
    for family, model, figures in rows
)


def published(table: str, family: str) -> list[Published]:
    """The rows of a table that are about a model family."""
    return [row for row in PUBLISHED if row.table == table and row.family == family]
