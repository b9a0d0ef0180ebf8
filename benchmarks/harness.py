"""Servers and callers as processes of their own, their CPU time, and the tables.

A benchmark starts every server and its caller once, then lets them take turns: round after round,
each caller works for a moment while everything else is idle. A disturbance by other programs hits
all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

_START_S = 60.0
_STOP_S = 15.0
_WARM_UP_S = 0.3

# glibc otherwise gives freed buffers of megabytes back to the kernel and faults them in again.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}

# The others print a line `ready URL ...`.
_HAVE_HEALTH_ROUTE = ("flask", "litserve")

_PACKAGES = ("grpcio", "protobuf", "fastapi", "uvicorn", "numpy", "flask", "gunicorn", "litserve")


class BenchmarkFailed(Exception):
    """A process did not start, ended early or gave a wrong answer."""


@dataclass(frozen=True)
class Contender:
    """A server, how to start it, and the kind of caller (callers.py) it is called by."""

    name: str
    caller: str
    command: tuple[str, ...]
    """Arguments for the Python interpreter; "{port}" stands for a free port."""
    variables: tuple[tuple[str, str], ...] = ()


def our_service(caller: str, name: str, *flags: str) -> Contender:
    """The chassis with a model that does nothing, called over "http" or "grpc", or, without an
    idempotency key, "http-unkeyed" or "grpc-unkeyed"."""
    ports = ("--http-port", "0", "--grpc-port", "0")
    return Contender(name, caller, ("noop_service.py", *ports, *flags))


def sync_worker(name: str, **variables: str) -> Contender:
    """Flask under one gunicorn sync worker."""
    options = ("--worker-class", "sync", "--workers", "1", "--timeout", "120")
    command = ("-m", "gunicorn", *options, "--bind", "127.0.0.1:{port}", "flask_server:app")
    return Contender(name, "flask", command, tuple(variables.items()))


def litserve_server(name: str, *flags: str) -> Contender:
    return Contender(name, "litserve", ("litserve_server.py", "--port", "{port}", *flags))


def bare_server(kind: str, name: str) -> Contender:
    """What the transport alone costs: "socket" or "grpc"."""
    return Contender(name, f"bare-{kind}", ("bare_server.py", kind))


@dataclass
class Running:
    """A started server with its caller, ready to be measured."""

    contender: Contender
    server: psutil.Process
    caller: subprocess.Popen[str]
    rounds: list[Round] = field(default_factory=list)

    def measure(self, seconds: float) -> Round:
        """Lets the caller call for `seconds`."""
        before = cpu_s(self.server)
        report = self._work(seconds)
        return Round(server_cpu_s=cpu_s(self.server) - before, **report)

    def _work(self, seconds: float) -> dict[str, Any]:
        assert self.caller.stdin is not None
        assert self.caller.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the answer below tells what happened
            self.caller.stdin.write(f"{seconds}\n")
            self.caller.stdin.flush()
        line = self.caller.stdout.readline()
        if not line:
            raise BenchmarkFailed(f"the caller of {self.contender.name} ended; its error is above")
        return json.loads(line)


@dataclass(frozen=True)
class Round:
    """What one turn cost. CPU times in seconds, over all threads (and a server's children)."""

    server_cpu_s: float
    client_cpu_s: float
    wall_s: float
    images: int
    latencies_s: list[float]
    """Of each call."""

    @property
    def server_ms(self) -> float:
        return self.server_cpu_s * 1000 / self.images

    @property
    def client_ms(self) -> float:
        return self.client_cpu_s * 1000 / self.images

    @property
    def images_per_s(self) -> float:
        return self.images / self.wall_s


class Bench:
    """Starts contenders; on leaving, stops all that it started."""

    def __init__(self, *, images: int, callers: int, side: int) -> None:
        self._sizes = {"--images": images, "--callers": callers, "--side": side}
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        self._folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def start(self, contender: Contender, variables: Mapping[str, str] | None = None) -> Running:
        """Returns when the service is ready and both sides are warm. Raises BenchmarkFailed."""
        environment = _environment({**(variables or {}), **dict(contender.variables)})
        log = self._folder / "server.log"
        port = free_port()
        with log.open("w") as file:
            server = subprocess.Popen(
                [sys.executable, *(part.format(port=port) for part in contender.command)],
                cwd=HERE,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._exit.callback(_stop_group, server)
        url = _wait_ready(contender, server, log, port)
        sizes = [f"{flag}={number}" for flag, number in self._sizes.items()]
        caller = subprocess.Popen(
            [sys.executable, "callers.py", contender.caller, url, *sizes],
            cwd=HERE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._exit.callback(_stop_group, caller)
        running = Running(contender, psutil.Process(server.pid), caller)
        running.measure(_WARM_UP_S)
        return running


def take_turns(running: Iterable[Running], *, rounds: int, seconds: float) -> None:
    """Fills `rounds` of each; every round goes through all of them."""
    running = list(running)
    for number in range(rounds):
        for one in running:
            one.rounds.append(one.measure(seconds))
        _note(f"round {number + 1} of {rounds}")


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process and its living descendants, all threads, seconds."""
    family = [process, *process.children(recursive=True)]
    return sum(map(_own_cpu_s, family))


def _own_cpu_s(process: psutil.Process) -> float:
    if sys.platform == "linux":  # nanoseconds, where /proc counts in hundredths of a second
        clock = ctypes.c_int()
        code = ctypes.CDLL(None).clock_getcpuclockid(process.pid, ctypes.byref(clock))
        if code == 0:
            return time.clock_gettime(clock.value)
    times = process.cpu_times()
    return times.user + times.system


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "REWARD_"))}
    roots = [str(ROOT / name) for name in ("proto", "services")]
    path = os.pathsep.join([*roots, *filter(None, [own.get("PYTHONPATH")])])
    return own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | dict(variables)


def _wait_ready(contender: Contender, server: subprocess.Popen, log: Path, port: int) -> str:
    """The URL for callers."""
    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        if contender.caller in _HAVE_HEALTH_ROUTE:
            if _is_healthy(f"http://127.0.0.1:{port}/health"):
                return f"http://127.0.0.1:{port}"
        else:
            for line in log.read_text().splitlines(keepends=True):
                if line.startswith("ready ") and line.endswith("\n"):
                    scheme = contender.caller.removesuffix("-unkeyed") + ":"
                    return next(u for u in line.split() if u.startswith(scheme))
        time.sleep(0.1)
    tail = "\n".join(log.read_text().splitlines()[-20:])
    raise BenchmarkFailed(f"{contender.name} did not become ready:\n{tail}")


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _stop_group(process: subprocess.Popen) -> None:
    """Ends a process that leads a session of its own, with all its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        _note(f"process {process.pid} did not end by itself")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (%(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of an image, pixels (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only those whose name contains one of these"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round there")


def chosen(contenders: Iterable[Contender], only: Sequence[str] | None) -> list[Contender]:
    """Exits when nothing is left."""
    contenders = list(contenders)
    kept = [c for c in contenders if not only or any(o.lower() in c.name.lower() for o in only)]
    if not kept:
        sys.exit(f"--only: choose among {', '.join(repr(c.name) for c in contenders)}")
    return kept


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and the others numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions(options: argparse.Namespace) -> str:
    """When, on what and with which versions: the line under a table."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    load = os.getloadavg()[0]
    return (
        f"`{command}` ({options.rounds} rounds of {options.seconds:g} s, {options.side} x "
        f"{options.side} pixels), "
        f"{datetime.date.today().isoformat()}, {cpu_model()}, {os.cpu_count()} cores, "
        f"load {load:.1f}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {v}" for name, v in _versions())
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
