"""Prints what extras of pyproject.toml need, one requirement a line: `requirements.py ocr`.

Images install these first, in a layer that a change of our own code leaves alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SELF = re.compile(r"flow-rewards\[(.*)\]")


def requirements(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """The base requirements and those of `extras`; extras that name other extras are followed."""
    yield from project["dependencies"]
    for extra in extras:
        yield from _of_extra(project["optional-dependencies"], extra)


def _of_extra(table: dict[str, list[str]], extra: str) -> Iterator[str]:
    if extra not in table:
        sys.exit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(table)}")
    for requirement in table[extra]:
        inner = _SELF.fullmatch(requirement)
        if inner is None:
            yield requirement
        else:
            for name in inner[1].split(","):
                yield from _of_extra(table, name.strip())


if __name__ == "__main__":
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    found = requirements(tomllib.loads(text)["project"], sys.argv[1:])
    sys.stdout.write("".join(f"{line}\n" for line in dict.fromkeys(found)))
