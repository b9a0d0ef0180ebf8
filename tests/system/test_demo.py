"""`make demo` in small: its own service, a short training, the report, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SHORT = [
    "epochs=2",
    "sampling.prompts_per_epoch=2",
    "sampling.group_size=4",
    "sampling.num_steps=4",
    "sampling.window.size=2",
    "update.trained_steps=2",
    "evaluation.num_steps=6",
    "evaluation.images_per_prompt=1",
    "evaluation.heldout_images_per_prompt=1",
]


def start_demo(out: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flow_trainer", "demo", "--out", str(out)]
    for override in [*SHORT, *overrides]:
        command += ["--set", override]
    return subprocess.Popen(
        command,
        env=environment(TMPDIR=str(out.parent)),
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # tests that run in the background of a shell inherit an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def started_in(folder: Path) -> list[str]:
    """Command lines of living processes that name `folder` (the trainer's run, the port file)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if str(folder) in command:
            found.append(command)
    return found


def test_the_demo_ends_by_itself_and_leaves_a_report(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    process = start_demo(run)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    summary = json.loads((run / "summary.json").read_text())
    assert {
        "heldout_before",
        "heldout_after",
        "train_wall_seconds",
        "reward_wait_fraction",
        "epochs",
        "seed",
        "versions",
    } <= summary.keys()
    assert summary["epochs"] == 2
    assert 0.3 < summary["heldout_before"] < 0.7
    assert "held-out score before" in output
    assert "report.html" in output
    html = (run / "report.html").read_text()
    # eight held-out prompts before and after, eight fixed prompts at epochs 0 and 2
    assert html.count("data:image/png") == 32
    assert (run / "best" / "adapter" / "transformer" / "config.json").exists()
    assert started_in(tmp_path) == []


def test_ctrl_c_saves_and_stops_everything(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    process = start_demo(run, "epochs=1000")
    deadline = time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or '"train"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "saved" in output
    assert "Traceback" not in output
    assert list((run / "checkpoints").glob("epoch_*/state.json"))
    assert started_in(tmp_path) == []
