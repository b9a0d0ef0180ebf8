"""`flow-grpo demo`: one real reward service, one real training run, one report.

The OCR service and the trainer are processes of their own, as they would be on two machines; this
launcher starts them, waits, and stops what it started, also on Ctrl-C. It imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flow_trainer.errors import ConfigError, TrainerError
from reward_api import RewardClient, RewardError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RECIPE = RECIPES / "tiny_sd3_ocr_nft.toml"
FLOW_GRPO = RECIPES / "tiny_sd3_ocr.toml"
"""The same task by the paper's own objective."""
READY_TIMEOUT_S = 120.0
SERVICE_LOG = "service.log"
STOP_TIMEOUT_S = 20.0

# Freed multi-megabyte buffers otherwise go back to the system and fault in again on every step; on
# virtual machines that is most of the time. OpenMP threads that spin steal the other process's core.
PROCESS_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


def run_demo(
    *, out: Path, seed: int, recipe: Path | None, overrides: Sequence[str], keep: bool
) -> int:
    """Trains `recipe` against a fresh OCR service in `out`; returns the exit status."""
    recipe = recipe or RECIPE
    if not recipe.exists():
        raise ConfigError(f"no recipe {recipe}: run the demo from a checkout, or pass --recipe")
    if out.exists() and not keep:
        _clear(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be a folder: {error.strerror}") from None
    # the children have sessions of their own: a closed terminal must not leave them behind
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with ocr_service(out / SERVICE_LOG) as url:
        status = _train(recipe, out, [f"seed={seed}", f"rewards.ocr.url={url}", *overrides], keep)
    if status == 0:
        _show(out)
    return status


def _clear(out: Path) -> None:
    """Removes an earlier demo; anything else stays."""
    mine = out.is_dir() and (not any(out.iterdir()) or (out / SERVICE_LOG).exists())
    if not mine:
        raise ConfigError(f"--out {out} is no demo's folder, which would be removed: name another")
    shutil.rmtree(out)


@contextmanager
def ocr_service(log: Path) -> Iterator[str]:
    """The OCR reward, without detection: a tiny sign is one line of text, and to look for it would cost
    ten times more."""
    with reward_service("ocr", log, "--no-detect") as url:
        yield url


@contextmanager
def reward_service(reward: str, log: Path, *flags: str) -> Iterator[str]:
    """A reward, by its name or as a file, as a child process on free ports; yields its URL and stops it by
    its pid."""
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        ports = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "reward_services", reward, "--http-port", "0", *flags]
        command += ["--grpc-port", "0", "--port-file", str(ports)]
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **PROCESS_ENV},
            # a session of its own: on Ctrl-C the trainer saves first, and may need the service
            start_new_session=True,
        )
        try:
            yield _wait_ready(Path(reward).stem, process, ports, log)
        finally:
            _stop(process)


def _wait_ready(name: str, process: subprocess.Popen[bytes], ports: Path, log: Path) -> str:
    print(f"starting the {name} reward service ...", file=sys.stderr)
    deadline = READY_TIMEOUT_S
    while not ports.exists():
        if process.poll() is not None or deadline <= 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise TrainerError(f"the {name} service did not start; the end of {log}:\n{tail}")
        deadline -= 0.2
        time.sleep(0.2)
    url = f"http://127.0.0.1:{json.loads(ports.read_text())['http_port']}"
    with RewardClient(url) as client:
        try:
            client.wait_ready(READY_TIMEOUT_S)
        except RewardError as error:
            raise TrainerError(f"the {name} service is not ready ({error}); see {log}") from error
    print(f"{name} reward ready at {url}", file=sys.stderr)
    return url


def _train(recipe: Path, out: Path, overrides: Sequence[str], resume: bool) -> int:
    command = [sys.executable, "-m", "flow_trainer", "train", str(recipe), "--out", str(out)]
    for override in overrides:
        command += ["--set", override]
    if resume:
        command.append("--resume")
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **PROCESS_ENV},
        # Ctrl-C comes from us, once: the trainer takes a second one as "do not even save"
        start_new_session=True,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        _stop(process)


def _show(out: Path) -> None:
    from flow_trainer.record.report import summary_table, write_report

    summary = json.loads((out / "summary.json").read_text())
    report = write_report(out)
    print(summary_table(summary))
    print(f"\nreport: {report}")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
