"""Looks at a service from a process of its own while others call it: how long health takes to answer,
how much memory, how many descriptors and threads the process has.

As a script (`watch.py PID HTTP GRPC`) it does so until its standard input ends, then prints what it saw.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts import Figures, percentile

from processes import Service, environment

PERIOD_S = 0.02
_PERIODS = {"http_ms": 1.25, "grpc_ms": 5.0}
"""Of five questions four go over HTTP and one over gRPC."""
HEALTH_MS = 100.0
GROWTH_MB = 32.0
_SAMPLE_S = 0.5
_TIMEOUT_S = 20.0


@dataclass
class Seen:
    """Times in milliseconds, memory in MB."""

    http_ms: list[list[float]] = field(default_factory=list)
    grpc_ms: list[list[float]] = field(default_factory=list)
    late_ms: list[list[float]] = field(default_factory=list)
    """How much longer than asked the watching process slept: what the machine itself adds. Like the
    others pairs of a time (time.monotonic) and milliseconds."""
    failures: list[str] = field(default_factory=list)
    samples: list[list[float]] = field(default_factory=list)
    """[seconds, memory, descriptors, threads]"""

    def times(self, what: str, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Milliseconds of what was asked in a span of time, as if asked at a steady pace: a question that
        waits also stands for those that were not asked meanwhile."""
        period = PERIOD_S * 1000 * _PERIODS.get(what, 1.0)
        values = [ms for at, ms in getattr(self, what) if since <= at <= until]
        return [v - k * period for v in values for k in range(int(v / period) + 1)]

    def p99(self, what: str) -> float:
        return percentile(self.times(what), 0.99)

    def most(self, column: int) -> float:
        return max((row[column] for row in self.samples), default=0.0)

    def level(self, column: int, start: float, end: float) -> float:
        """The median of a column over a share of the time, as 0.25 to 0.5."""
        rows = self.samples[int(start * len(self.samples)) : int(end * len(self.samples)) or None]
        return percentile([row[column] for row in rows], 0.5)

    def growth(self, column: int) -> float:
        """From the second quarter of the time to the last: the first is warming up."""
        return self.level(column, 0.75, 1.0) - self.level(column, 0.25, 0.5)

    def judge(
        self, figures: Figures, *, growth_mb: float = GROWTH_MB, health_ms: float = HEALTH_MS
    ) -> None:
        """Health in time, and everything flat."""
        for what, name in (("http_ms", "HTTP"), ("grpc_ms", "gRPC")):
            times = self.times(what)
            p99 = percentile(times, 0.99)
            asked = f"health over {name} within {health_ms:.0f} ms at p99"
            found = f"{p99:.0f} ms (median {percentile(times, 0.5):.1f}, most {max(times, default=0):.0f})"
            figures.demand(asked, found, p99 <= health_ms)
        figures.demand(
            "health always answered", f"{len(self.failures)} failures", not self.failures
        )
        growth = self.growth(1)
        figures.demand(
            f"memory flat (less than {growth_mb:.0f} MB from the second quarter to the last)",
            f"{growth:+.0f} MB, {self.most(1):.0f} MB at most",
            growth < growth_mb,
        )
        for column, name in ((2, "descriptors"), (3, "threads")):
            grown = self.growth(column)
            found = f"{grown:+.0f}, {self.most(column):.0f} at most"
            figures.demand(f"{name} flat", found, grown <= 8)
        figures.notes.append(
            f"The machine itself let the watching process sleep {self.p99('late_ms'):.0f} ms too long "
            "at p99."
        )


@contextmanager
def watching(service: Service) -> Iterator[Seen]:
    """Fills what it yields when the block ends."""
    seen = Seen()
    command = [sys.executable, __file__, str(service.process.pid), service.http, service.grpc]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )
    try:
        yield seen
    finally:
        printed, _ = process.communicate()
        for name, values in json.loads(printed or "{}").items():
            setattr(seen, name, values)


def status_of(pid: int) -> list[float]:
    """[memory in MB, descriptors, threads] of a process on Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return [int(fields["VmRSS"][0]) / 1024, descriptors, int(fields["Threads"][0])]


def main(pid: int, http_url: str, grpc_url: str) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    seen = Seen()
    connection: http.client.HTTPConnection | None = None
    channel = grpc.insecure_channel(grpc_url.removeprefix("grpc://") or "127.0.0.1:9")
    health: Any = health_pb2_grpc.HealthStub(channel)
    started = last_sample = time.monotonic()
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        begun = time.monotonic()
        try:
            if number % 5:
                connection = connection or _connection(http_url)
                connection.request("GET", "/livez" if number % 2 else "/readyz")
                connection.getresponse().read()
                seen.http_ms.append([begun, (time.monotonic() - begun) * 1000])
            elif grpc_url:
                health.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
                seen.grpc_ms.append([begun, (time.monotonic() - begun) * 1000])
        except Exception as error:
            connection = None
            seen.failures.append(f"{type(error).__name__} after {time.monotonic() - begun:.2f} s")
        if time.monotonic() - last_sample >= _SAMPLE_S:
            last_sample = time.monotonic()
            try:
                seen.samples.append([round(last_sample - started, 1), *status_of(pid)])
            except (OSError, KeyError):
                break
        begun = time.monotonic()
        time.sleep(PERIOD_S)
        seen.late_ms.append([begun, (time.monotonic() - begun - PERIOD_S) * 1000])
    channel.close()
    print(json.dumps(vars(seen)))


def _connection(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=_TIMEOUT_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
