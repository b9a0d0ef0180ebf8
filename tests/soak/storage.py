"""A full disk, damaged checkpoints, two trainers on one folder: `python tests/soak/storage.py`."""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from parts import Figures, run_part, say
from training import EPOCHS, Bench, differences, training_bench

import ranks
from flow_trainer.record.seal import damage
from processes import environment

NEWEST = f"checkpoints/epoch_{EPOCHS:05d}"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARMS: dict[str, Callable[[Path], None]] = {"cut": cut, "one bit": flip, "gone": Path.unlink}


def damaged_checkpoints(bench: Bench, whole: Path, figures: Figures, *, short: bool) -> None:
    """Every file of the newest checkpoint is harmed in every way; the run falls back and ends the same."""
    files = sorted(p for p in (whole / NEWEST).rglob("*") if p.is_file())
    names = [str(p.relative_to(whole / NEWEST)) for p in files]
    cases = [
        (name, harm)
        for name in names
        for harm in HARMS
        # without these it is a checkpoint from before there were any, or none at all
        if (name, harm) != ("checksums.json", "gone")
        and (name, harm) != ("checksums.json", "one bit")
    ]
    if short:
        cases = [("weights.safetensors", "cut"), ("ema.safetensors", "one bit")]
    wrong = []
    for number, (name, harm) in enumerate(cases):
        run = bench.folder / f"damaged{number}"
        shutil.copytree(whole, run)
        HARMS[harm](run / NEWEST / name)
        status, printed = bench.train(run, "--resume")
        said = " ".join(printed.split())
        tells = "is damaged" in said or name == "state.json"
        problem = f"status {status}" if status else ", ".join(differences(run, whole))
        if problem or not tells:
            wrong.append(f"{name} {harm}: {problem or 'not said'}")
        say(f"storage: {number + 1} of {len(cases)}, {name} {harm}: {problem or 'fell back'}")
        shutil.rmtree(run)
    then = "; ".join(wrong) or "fell back, said so, ended the same"
    figures.rows.append(["newest checkpoint damaged", f"{len(cases)} cases", then])
    figures.demand(
        "a damaged newest checkpoint falls back to the last whole one",
        f"{len(cases) - len(wrong)} of {len(cases)}",
        not wrong,
    )


def two_trainers(bench: Bench, figures: Figures) -> None:
    run = bench.folder / "shared"
    arguments = ["train", str(bench.recipe), "--out", str(run), "--set", "epochs=200"]
    first = ranks.start(1, ranks.command, arguments, run.with_suffix(".log")).processes[0]
    try:
        while not (run / "checkpoints" / "epoch_00001" / "state.json").exists():
            assert first.is_alive(), run.with_suffix(".log").read_text()
            first.join(0.05)
        log = bench.folder / "second.log"
        again = ["train", str(bench.recipe), "--out", str(run), "--resume"]
        (status,) = ranks.start(1, ranks.command, again, log).wait(120)
        said = " ".join(log.read_text().split())
        is_refused = status == 2 and f"in use by another trainer (process {first.pid}" in said
        still_runs = first.is_alive()
    finally:
        first.terminate()
        first.join(60)
        if first.is_alive():
            first.kill()
    then = "the first went on" if still_runs else "the first ended"
    shown = said.replace(str(run), "RUN").replace(socket.gethostname(), "HOST")[-160:]
    figures.rows.append(["a second trainer on the folder", f"status {status}: {shown}", then])
    figures.demand(
        "two trainers on one run folder refused",
        f"status {status}, names the process",
        is_refused and still_runs,
    )


FULL = """
set -e
mount -t tmpfs -o size={size}k none {disk}
status=0; {train} --out {disk}/run > {disk}.log 2>&1 || status=$?
echo $status > {disk}.status
cp -r {disk}/run {disk}.left
mount -o remount,size=256m {disk}
{train} --out {disk}/run --resume > {disk}.resumed 2>&1
cp -r {disk}/run {disk}.after
"""


def full_disk(bench: Bench, whole: Path, figures: Figures) -> None:
    """A file system of its own that has room for two checkpoints and a half; then it gets more."""
    demand = "a full disk costs no whole checkpoint, and the run goes on"
    checkpoint, everything = (_kilobytes(path) for path in (whole / NEWEST, whole))
    disk = bench.folder / "disk"
    disk.mkdir()
    # the run keeps two checkpoints, the best weights and its logs: a third checkpoint does not fit
    script = FULL.format(
        size=everything - checkpoint // 2,
        disk=disk,
        train=f"{sys.executable} -m flow_trainer train {bench.recipe}",
    )
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    status_file = Path(f"{disk}.status")
    if not status_file.exists():
        figures.notes.append(f"The full disk was not tried: {done.stderr.strip()[:200]}.")
        return
    status, said = (
        status_file.read_text().strip(),
        " ".join(Path(f"{disk}.log").read_text().split()),
    )
    left = [
        p for p in sorted(Path(f"{disk}.left").glob("checkpoints/epoch_*")) if damage(p) is None
    ]
    is_one_line = "No space left" in said and "Traceback" not in said
    problem = differences(Path(f"{disk}.after"), whole) if done.returncode == 0 else ["not resumed"]
    then = ", ".join(problem) or "resumed bit for bit"
    found = f"status {status}, {len(left)} whole checkpoints left"
    figures.rows.append(["disk full", found, then])
    figures.demand(
        demand, f"{found}, {then}", status == "2" and is_one_line and bool(left) and not problem
    )


def _kilobytes(path: Path) -> int:
    return int(subprocess.check_output(["du", "-sk", str(path)]).split()[0])


def soak(options: argparse.Namespace) -> Figures:
    figures = Figures("storage", "Storage that fails")
    figures.header = ["what happens", "cases, or what is said", "then"]
    with tempfile.TemporaryDirectory() as name, training_bench(Path(name)) as bench:
        whole = bench.folder / "whole"
        status, printed = bench.train(whole)
        assert status == 0, printed
        two_trainers(bench, figures)
        damaged_checkpoints(bench, whole, figures, short=options.short)
        if not options.short:
            full_disk(bench, whole, figures)
    return figures


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--short", action="store_true", help="two damages, no full disk")
    return made


if __name__ == "__main__":
    run_part(soak, parser())
