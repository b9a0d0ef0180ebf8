"""One step of benchmarks/gpu/check.py: `step.py NAME ANSWER.json [--shrunk]`."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[dict[str, Any]], None]
"""Leaves what was found so far: it counts even when the rest of the step does not come."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("answer", type=Path)
    parser.add_argument("--shrunk", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    def write(found: dict[str, Any]) -> None:
        options.answer.write_text(json.dumps(found))

    if options.name == "versions":
        from environment import versions as step
    elif options.name == "precision":
        from precision import precision as step
    elif options.name in ("sd35m", "flux"):
        from epochs import epoch as step
    elif options.name == "nccl":
        from environment import nccl as step
    else:
        from served import service as step
    step(options.name, options.shrunk, write)


if __name__ == "__main__":
    main()
