"""Steady scoring: `python tests/soak/steady.py --seconds 3600`. Memory, descriptors and threads stay flat.

Callers over both protocols score raw pixels and files; one in ten calls is cancelled, one in ten holds an
image that is none, and now and then a connection is reset in the middle of a request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
from parts import Figures, run_part, say
from watch import Seen, watching

from processes import Service, Services
from reward_api import AsyncRewardClient

CALLERS = ("http", "grpc", "http", "grpc")
NAMES = ("whole", "with a broken image", "cancelled", "reset", "wrong")
GROWTH_MB = 16.0


async def call(
    service: Service, wire: str, seed: int, ends: float, pause_s: float, counts: dict[str, int]
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, 128, 128, 3), np.uint8)
    broken = [*images[:7], b"\x89PNG\r\n\x1a\nbroken"]
    async with AsyncRewardClient(getattr(service, wire), on_error="nan", timeout_s=60) as client:
        while time.monotonic() < ends:
            kind = rng.integers(10)
            if kind == 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.score(images, ["a"] * 8), 0.002)
                counts["cancelled"] += 1
            elif kind == 1:
                batch = await client.score(broken, ["a"] * 8)
                counts["with a broken image"] += 1
                counts["wrong"] += list(batch.errors) != [7]
            else:
                batch = await client.score(images, ["a"] * 8)
                counts["whole"] += 1
                counts["wrong"] += not batch.valid.all()
            if kind == 2:
                await asyncio.to_thread(_reset, service)
                counts["reset"] += 1
            await asyncio.sleep(pause_s)


def _reset(service: Service) -> None:
    """A whole small request, then half of a large one, then the connection is gone without an end."""
    port = int(service.http.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(4096)
        head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Content-Length: 300000\r\n\r\n" + b" " * 150_000)


async def score_steadily(
    service: Service, seconds: float, pause_s: float, counts: dict[str, int]
) -> None:
    ends = time.monotonic() + seconds
    calls = [
        asyncio.create_task(call(service, wire, i, ends, pause_s, counts))
        for i, wire in enumerate(CALLERS)
    ]
    try:
        while time.monotonic() < ends:
            await asyncio.wait(calls, timeout=min(60.0, max(0.1, ends - time.monotonic())))
            say(f"steady: {counts}, {max(0, ends - time.monotonic()):.0f} s left")
            if any(one.done() and one.exception() for one in calls):
                break
        await asyncio.gather(*calls)
    finally:
        for one in calls:
            one.cancel()


def judge(figures: Figures, counts: dict[str, int], seen: Seen, seconds: float) -> None:
    for name, column in (("memory, MB", 1), ("descriptors", 2), ("threads", 3)):
        cells = [seen.level(column, q / 4, (q + 1) / 4) for q in range(4)]
        figures.rows.append([name, *(f"{cell:.0f}" for cell in cells), f"{seen.most(column):.0f}"])
    wrong = counts.pop("wrong")
    figures.demand("every call answered as it should be", f"{wrong} not, of {counts}", not wrong)
    seen.judge(figures, growth_mb=GROWTH_MB)
    hours = (seen.samples[-1][0] - seen.samples[0][0]) / 3600 if seen.samples else 0
    if hours:
        slope = seen.growth(1) / (hours * 0.5)
        figures.notes.append(
            f"Scored for {seconds / 60:.1f} minutes. Between the second quarter and the last, half of "
            f"that time apart, memory changed by {seen.growth(1):+.1f} MB: {slope:+.0f} MB an hour "
            "if it went on like this."
        )


def soak(options: argparse.Namespace) -> Figures:
    figures = Figures("steady", "Steady scoring")
    figures.header = ["", "1st quarter", "2nd", "3rd", "4th", "most"]
    counts: dict[str, int] = dict.fromkeys(NAMES, 0)
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Path(folder), log=True)
        try:
            service = services.start("-m", "reward_services", "jpeg")
            with watching(service) as seen:
                asyncio.run(score_steadily(service, options.seconds, options.pause, counts))
            judge(figures, counts, seen, options.seconds)
        finally:
            services.stop()
    return figures


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seconds", type=float, default=600.0, help="(%(default)s)")
    made.add_argument(
        "--pause",
        type=float,
        default=0.02,
        metavar="SECONDS",
        help="of each caller after a call; 0.2 leaves a small machine most of its time (%(default)s)",
    )
    return made


if __name__ == "__main__":
    run_part(soak, parser())
