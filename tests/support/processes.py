"""Real processes on loopback for tests; every one is stopped by its pid."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reward_api import RewardClient

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("proto", "services", "trainer"))
REWARDS = Path(__file__).parent / "rewards"
MARKS = str(REWARDS / "marks.py")
BRIGHTNESS = str(REWARDS / "brightness.py")
EVIDENCE = str(REWARDS / "evidence.py")
SMOOTH = str(REWARDS / "smooth.py")


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", **extra}


@contextmanager
def fixed_ports() -> Iterator[None]:
    """While a test uses the ports that the documents name: one at a time on this machine, whatever
    worker or checkout it runs in."""
    with open(Path(tempfile.gettempdir()) / "flow-rewards-ports.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock ends with the file


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    http: str
    grpc: str

    def stop(self) -> int:
        """SIGTERM, then the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass
class Services:
    """Starts services and stops what is left of them."""

    folder: Path
    started: list[Service] = field(default_factory=list)
    log: bool = False
    """Whether what the n-th one logs goes to `logN.txt` in the folder, not to standard error."""

    def start(
        self,
        *command: str,
        http_port: int = 0,
        grpc_port: int = 0,
        wait_ready: bool = True,
        **variables: str,
    ) -> Service:
        """`start(BRIGHTNESS)` or `start("-m", "reward_services", "jpeg")`; returns when ready."""
        ports_file = self.folder / f"ports{len(self.started)}.json"
        flags = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        flags += ["--port-file", str(ports_file)]
        log = self.folder / f"log{len(self.started)}.txt" if self.log else os.devnull
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, *command, *flags],
                env=environment(**variables),
                cwd=self.folder,
                stderr=file if self.log else None,
            )
        service = Service(process, "", "")
        self.started.append(service)
        deadline = time.monotonic() + 60
        while not ports_file.exists():
            assert process.poll() is None, f"the service ended with {process.returncode}"
            assert time.monotonic() < deadline, "the service opened no ports"
            time.sleep(0.05)
        ports = json.loads(ports_file.read_text())
        service.http = f"http://127.0.0.1:{ports['http_port']}"
        service.grpc = f"grpc://127.0.0.1:{ports['grpc_port']}"
        if wait_ready:
            with RewardClient(service.http) as client:
                client.wait_ready(60)
        return service

    def stop(self) -> None:
        for service in self.started:
            service.stop()
