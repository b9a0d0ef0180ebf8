"""Writes the figures of the soak into docs/reliability.md, between its two marks.

`python tests/soak/report.py [DOCUMENT] [FOLDER]`; the parts' JSON files are in the folder.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- soak: begin -->\n", "<!-- soak: end -->"
ORDER = ("hostile", "overload", "replicas", "steady", "kills", "storage")
_PACKAGES = ("grpcio", "protobuf", "fastapi", "uvicorn", "uvloop", "pillow", "pydantic", "torch")


def write_document(document: Path, folder: Path) -> None:
    text = document.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    assert mark, f"{document} lacks the marks of the soak"
    body = "\n".join(sections(folder))
    document.write_text(f"{head}{BEGIN}\n{body}\n{mark}{tail}", encoding="utf-8")


def sections(folder: Path) -> Iterator[str]:
    files = [folder / f"{name}.json" for name in ORDER]
    yield from _conditions([file for file in files if file.exists()])
    for file in files:
        if file.exists():
            yield from _section(json.loads(file.read_text()))


def _conditions(files: list[Path]) -> Iterator[str]:
    days = sorted({datetime.date.fromtimestamp(file.stat().st_mtime).isoformat() for file in files})
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield (
        f"{' and '.join(days)}; {cpu()}, {os.cpu_count()} cores, Linux {platform.release()}, Python "
        f"{platform.python_version()}, {versions}.\n"
    )


def _section(part: dict[str, Any]) -> Iterator[str]:
    if "problem" in part:
        yield f"### {part['part']}\n\nNo figures: {part['problem']} (`{part['command']}`).\n"
        return
    yield f"### {part['title']}\n"
    yield f"`{part['command']}`, {part['seconds'] / 60:.1f} minutes.\n"
    yield _table(
        ["demand", "found", ""],
        [[a, f, "met" if m else "**not met**"] for a, f, m in part["demands"]],
    )
    if part["rows"]:
        yield _table(part["header"], part["rows"])
    if part["notes"]:
        yield "\n".join(part["notes"]) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [
        header,
        ["---"] * len(header),
        *([cell.replace("|", "/") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    given = [Path(argument) for argument in sys.argv[1:]]
    defaults = [root / "docs" / "reliability.md", root / "runs" / "soak"]
    write_document(*[*given, *defaults[len(given) :]])
