"""`make gpu-check`: what only a GPU can show, in at most nine minutes and without downloads.

    python benchmarks/gpu/check.py                     # on the GPU, full shapes, random weights
    python benchmarks/gpu/check.py --shrunk            # the same steps on a CPU, shapes shrunk
    python benchmarks/gpu/check.py --only precision

Steps run one after another, the most valuable first, each in a process of its own with a limit of
time; one that fails or runs out of time is reported as that, and the next one starts. After every step
DEVICE.json and the table in README.md of --out are written anew (default: docs/gpu; with --shrunk a
folder that git ignores). With --only, what is on record of the other steps stays.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = {
    "versions": 15,
    "precision": 120,
    "sd35m": 120,
    "flux": 110,
    "nccl": 20,
    "pickscore": 40,
    "hpsv2": 40,
    "clipscore": 30,
    "geneval": 45,
}
"""Seconds of each on a GPU, in their order; together nine minutes."""
SHRUNK_TIMES = 12
"""As long on a CPU, which has others' work to do too and compiles on its own cores."""
GRACE_S = 5.0
BEGIN, END = "<!-- begin: make gpu-check -->", "<!-- end -->"


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    out = options.out or (ROOT / "runs" / "gpu-check" if options.shrunk else ROOT / "docs" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"shrunk": options.shrunk, "date": f"{datetime.date.today()}"}
    steps: dict[str, Any] = {}
    for name in dict.fromkeys(["versions", *(options.only or STEPS)]):
        limit = options.limit or STEPS[name] * (SHRUNK_TIMES if options.shrunk else 1)
        steps[name] = run_step(name, shrunk=options.shrunk, limit_s=limit)
        print(f"{name}: {said(steps[name])}", flush=True)
        device = steps.get("versions", {}).get("device", "unknown device")
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        file = out / f"{slug}{'-shrunk' if options.shrunk else ''}.json"
        others = {}
        if options.only and file.exists():
            others = json.loads(file.read_text(encoding="utf-8"))["steps"]
        known = others | steps
        found |= {"device": device, "steps": {step: known[step] for step in STEPS if step in known}}
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_table(out)
    print(f"written: {out}")
    return 0 if all("error" not in step for step in steps.values()) else 1


def run_step(name: str, *, shrunk: bool, limit_s: float) -> dict[str, Any]:
    """What the step found, or {"error": why not}; `seconds` in both."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [sys.executable, str(HERE / "step.py"), name, str(answer)]
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *["--shrunk"] * shrunk],
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,
            )
            status = _ended(process, limit_s)
        seconds = round(time.monotonic() - began, 1)
        found = json.loads(answer.read_text()) if answer.exists() else {}
        if status is None:
            found["error"] = f"not done within {limit_s:g} s"
        elif status != 0:
            lines = log.read_text(errors="replace").strip().splitlines() or [f"status {status}"]
            found["error"] = lines[-1][:300]
        return {**found, "seconds": seconds}


def _ended(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Its exit status; None when it had to be ended, with all that it started."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, kind)
                process.wait(GRACE_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _environment() -> dict[str, str]:
    support = ("tests/support", "tests/support/checkpoints", "tests/support/rewards")
    roots = [ROOT / p for p in ("proto", "services", "trainer", *support, "benchmarks")]
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    # absolute: services run in folders of their own
    path = [*map(str, roots), *(str(Path(folder).resolve()) for folder in given)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # blocks of a decode alternate with an update's: without it they leave holes
    memory = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return {**memory, **os.environ, **offline, "PYTHONPATH": os.pathsep.join(path)}


def said(step: Mapping[str, Any]) -> str:
    """A step in a line."""
    values = {k: v for k, v in step.items() if k not in ("error", "seconds", "packages")}
    text = ", ".join(f"{k} {_short(v)}" for k, v in values.items())
    problem = f"FAILED: {step['error']}" if "error" in step else ""
    return "; ".join(filter(None, [problem, text])) + f" ({step['seconds']:g} s)"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k} {_short(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_table(out: Path) -> None:
    """A row per step and device of all that is on record in `out`."""
    rows = ["| device | step | found |", "| --- | --- | --- |"]
    for file in sorted(out.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        device = record["device"] + (" (shrunk shapes)" if record["shrunk"] else "")
        rows += [
            f"| {device} | {name} | {said(step).replace('|', '/')} |"
            for name, step in record["steps"].items()
        ]
    readme = out / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"{BEGIN}{END}\n"
    table = "\n".join(rows)
    text = f"{text.split(BEGIN)[0]}{BEGIN}\n\n{table}\n\n{END}{text.split(END)[1]}"
    readme.write_text(text, encoding="utf-8")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shrunk", action="store_true", help="small shapes, on the CPU")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--limit", type=float, metavar="S", help="seconds of each step")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
