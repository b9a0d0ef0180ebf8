"""Three replicas that are killed, frozen and restarted while they score: `replicas.py --seconds 180`.

Callers over both protocols score all the time through the real client. No call may be lost, and every score
is what it was before the first fault.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from parts import Figures, percentile, run_part, say

from processes import Service, Services
from reward_api import RewardClient

REPLICAS = 3
CALLERS = ("http", "grpc", "http", "grpc")
ATTEMPT_S = 3.0
FROZEN_S = 4.0


@dataclass
class Calls:
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0


class Fleet:
    """The replicas; a restarted one comes back on its ports."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.replicas = [self._start() for _ in range(REPLICAS)]
        self.faults: dict[str, int] = {}
        self.bad_exits: list[int] = []

    def _start(self, old: Service | None = None) -> Service:
        command = ["-m", "reward_services", "jpeg"]
        if old is None:
            return self._services.start(*command)
        http, grpc = (int(url.rpartition(":")[2]) for url in (old.http, old.grpc))
        return self._services.start(*command, http_port=http, grpc_port=grpc)

    def kill(self, index: int) -> None:
        """SIGKILL, and another in its place."""
        replica = self.replicas[index]
        replica.process.kill()
        replica.process.wait()
        self.replicas[index] = self._start(replica)

    def freeze(self, index: int) -> None:
        """SIGSTOP for longer than an attempt may take."""
        process = self.replicas[index].process
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(FROZEN_S)
        finally:
            process.send_signal(signal.SIGCONT)

    def roll(self, _: int) -> None:
        """All of them, one after the other: SIGTERM, drained, started again."""
        for index, replica in enumerate(self.replicas):
            status = replica.stop()
            if status:
                self.bad_exits.append(status)
            self.replicas[index] = self._start(replica)

    @property
    def kinds(self) -> dict[str, Callable[[int], None]]:
        return {"SIGKILL": self.kill, "SIGSTOP": self.freeze, "rolling restart": self.roll}


def call(
    urls: list[str], seed: int, expected: list[float], calls: Calls, ended: threading.Event
) -> None:
    images = pictures(seed)
    with RewardClient(urls, timeout_s=120, attempt_timeout_s=ATTEMPT_S) as client:
        while not ended.is_set():
            begun = time.monotonic()
            try:
                values = client.score(images, ["a"] * len(images)).values.tolist()
                calls.wrong += values != expected
            except Exception as error:
                calls.lost.append(f"{type(error).__name__}: {error}")
            calls.seconds.append(time.monotonic() - begun)


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 48, 48, 3), np.uint8)


def harass(fleet: Fleet, seconds: float, seed: int, is_over: Callable[[], bool]) -> None:
    """One fault of each kind, then others until the time is over."""
    rng = random.Random(seed)
    ends = time.monotonic() + seconds
    kinds = list(fleet.kinds)
    while (kinds or time.monotonic() < ends) and not is_over():
        name = kinds.pop(0) if kinds else rng.choice(list(fleet.kinds))
        say(f"replicas: {name}, {max(0, ends - time.monotonic()):.0f} s left")
        fleet.kinds[name](rng.randrange(REPLICAS))
        fleet.faults[name] = fleet.faults.get(name, 0) + 1
        time.sleep(rng.uniform(0.2, 1.5))


def soak(options: argparse.Namespace) -> Figures:
    logging.getLogger("reward_api").setLevel(logging.ERROR)  # it says each attempt that failed
    figures = Figures("replicas", "Three replicas killed, frozen, restarted")
    figures.header = ["calls over", "calls of 8 images", "p50, ms", "p99, ms", "max, ms", "lost"]
    found = [Calls() for _ in CALLERS]
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Path(folder), log=True)
        try:
            fleet = Fleet(services)
            threads = []
            for i, wire in enumerate(CALLERS):
                urls = [getattr(replica, wire) for replica in fleet.replicas]
                with RewardClient(urls) as client:
                    expected = client.score(pictures(i), ["a"] * 8).values.tolist()
                arguments = (urls, i, expected, found[i], ended)
                threads.append(threading.Thread(target=call, args=arguments, daemon=True))
            for thread in threads:
                thread.start()
            try:
                harass(
                    fleet, options.seconds, options.seed, lambda: any(calls.lost for calls in found)
                )
            finally:
                ended.set()
                for thread in threads:
                    thread.join(150)
        finally:
            services.stop()
    judge(figures, found, fleet)
    return figures


def judge(figures: Figures, found: list[Calls], fleet: Fleet) -> None:
    for wire in ("http", "grpc"):
        of_wire = [calls for calls, of in zip(found, CALLERS, strict=True) if of == wire]
        ms = [1000 * s for calls in of_wire for s in calls.seconds]
        cells = [f"{percentile(ms, share):.0f}" for share in (0.5, 0.99)]
        lost = sum(len(calls.lost) for calls in of_wire)
        figures.rows.append([wire, f"{len(ms):,}", *cells, f"{max(ms, default=0):.0f}", f"{lost}"])
    total = sum(len(calls.seconds) for calls in found)
    faults = ", ".join(f"{n} x {name}" for name, n in fleet.faults.items())
    lost = [line for calls in found for line in calls.lost]
    figures.demand("no call lost", f"{lost[:3] or 'none'} of {total:,}, with {faults}", not lost)
    wrong = sum(calls.wrong for calls in found)
    figures.demand("every score as before the faults", f"{wrong} differ", not wrong)
    figures.demand(
        "a drained replica leaves with 0", f"{fleet.bad_exits or 'yes'}", not fleet.bad_exits
    )
    figures.notes.append(
        f"Four callers; an attempt may take {ATTEMPT_S:g} s, a frozen replica is silent for "
        f"{FROZEN_S:g} s; restarted replicas come back on their ports."
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seconds", type=float, default=180.0, help="(%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of the faults (%(default)s)")
    return made


if __name__ == "__main__":
    run_part(soak, parser())
