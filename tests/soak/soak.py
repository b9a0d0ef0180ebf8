"""All parts of the soak, one after the other, each in bounded time: `make test-soak`.

A part that fails, hangs or is stopped is reported, and the others run all the same. Every part leaves its
figures as JSON; from these, docs/reliability.md is written (report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import say
from report import write_document

from processes import ROOT, environment

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    name: str
    flags: tuple[str, ...]
    """of the long form, of about half an hour in all"""
    short: tuple[str, ...]
    bound_s: float


PARTS = (
    Part("hostile", ("--inputs", "100000"), ("--inputs", "2000"), 1200),
    Part("overload", ("--seconds", "60"), ("--seconds", "6"), 240),
    Part("replicas", ("--seconds", "180"), ("--seconds", "5"), 480),
    Part("kills", (), ("--short",), 900),
    Part("storage", (), ("--short",), 900),
    Part("steady", ("--seconds", "600"), ("--seconds", "10"), 900),
)


def run(part: Part, flags: tuple[str, ...], folder: Path, bound_s: float) -> dict[str, Any]:
    """Its figures, or why there are none. On Ctrl-C the part ends first."""
    path = folder / f"{part.name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / f"{part.name}.py"), *flags, "--json", str(path)]
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True)
    problem = ""
    try:
        status = process.wait(bound_s)
        if not path.exists():
            problem = f"it ended with {status} and left no figures"
    except subprocess.TimeoutExpired:
        problem = f"it took longer than {bound_s:.0f} s"
    finally:
        end(process)
    if problem:
        say(f"{part.name}: {problem}")
        shown = ["python", f"tests/soak/{part.name}.py", *flags]
        seconds = round(time.monotonic() - started, 1)
        made = {
            "part": part.name,
            "problem": problem,
            "command": " ".join(shown),
            "seconds": seconds,
        }
        path.write_text(json.dumps(made, indent=1) + "\n")
    return json.loads(path.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """The part and what it has started, which share a session: first asked, then not."""
    for number, patience_s in ((signal.SIGINT, 30), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        if number is signal.SIGINT:
            time.sleep(0.5)  # what it started ends a moment later


def is_met(part: dict[str, Any]) -> bool:
    return "problem" not in part and all(met for _, _, met in part["demands"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--short", action="store_true", help="seconds in place of minutes")
    parser.add_argument(
        "--steady", type=float, metavar="SECONDS", help="how long to score steadily"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak", metavar="FOLDER")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if options.parts is None or part.name in options.parts]
    found = []
    status = 0
    try:
        for part in chosen:
            flags, bound_s = (part.short if options.short else part.flags), part.bound_s
            if part.name == "steady" and options.steady:
                flags, bound_s = ("--seconds", f"{options.steady:g}"), options.steady * 1.2 + 300
            say(f"{part.name}: {bound_s:.0f} s at most")
            found.append(run(part, flags, options.out, bound_s))
    except KeyboardInterrupt:
        say("stopped; what was found is reported")
        status = 130
    write_document(options.document, options.out)
    missed = [part for part in found if not is_met(part)]
    say(f"{len(found) - len(missed)} of {len(chosen)} parts met; see {options.document}")
    return status or int(len(found) < len(chosen) or bool(missed))


if __name__ == "__main__":
    sys.exit(main())
