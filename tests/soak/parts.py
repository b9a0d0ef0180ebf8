"""What the parts of the soak share: how a part is told its size, and how it hands over its figures."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[1] / "support"
for folder in (SUPPORT, SUPPORT / "checkpoints"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@dataclass
class Figures:
    """What one part found: a table, the demands with how they came out, and remarks."""

    part: str
    title: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    demands: list[tuple[str, str, bool]] = field(default_factory=list)
    """what was asked, what was found, whether that is enough"""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    command: str = ""

    def demand(self, asked: str, found: str, met: bool) -> None:
        self.demands.append((asked, found, bool(met)))

    @property
    def met(self) -> bool:
        return bool(self.demands) and all(met for _, _, met in self.demands)

    @property
    def failed(self) -> list[str]:
        return [f"{asked}: {found}" for asked, found, met in self.demands if not met]


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def run_part(
    work: Callable[[argparse.Namespace], Figures], parser: argparse.ArgumentParser
) -> None:
    """`python PART.py [--flags] [--json FILE]`: prints one row, writes the figures, and leaves with 0
    where every demand is met, else 1; 130 after Ctrl-C."""
    # A shell's background jobs are born deaf to Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        figures = work(options)
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(130)
    figures.seconds = round(time.monotonic() - started, 1)
    shown = [word for word in sys.argv[1:] if word not in ("--json", str(options.json))]
    figures.command = " ".join(["python", f"tests/soak/{Path(sys.argv[0]).name}", *shown])
    verdict = "met" if figures.met else "NOT MET"
    found = "; ".join(f"{asked}: {found}" for asked, found, _ in figures.demands)
    sys.stdout.write(f"{figures.part:10} {verdict:8} {figures.seconds:7.0f} s  {found}\n")
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(0 if figures.met else 1)
