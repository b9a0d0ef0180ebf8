"""Ten times as many calls as a service can answer: `python tests/soak/overload.py --seconds 60`.

The model takes 200 ms for a batch of up to 8, so 40 images a second; 400 are asked for, half over each
protocol, one call an image, without a retry. What does not fit is refused at once, what is accepted is
answered, and the service stays as fast and as small as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from parts import Figures, percentile, run_part
from watch import Seen, watching

from processes import ROOT, Service, Services
from reward_api.errors import Overloaded, RewardError
from reward_api.transport.base import Credentials, Transport, parse_url
from reward_api.transport.open import open_transport
from reward_api.wire.messages import Image, Item, ScoreRequest

SCORER = ROOT / "tests" / "services" / "chassis" / "fake_scorer.py"
BATCH_MS, BATCH_ITEMS, QUEUE_ITEMS = 200, 8, 64
CAPACITY = BATCH_ITEMS * 1000 / BATCH_MS
FACTOR = 10
ACCEPTED_S = (QUEUE_ITEMS / BATCH_ITEMS + 2) * BATCH_MS / 1000 + 1.0
"""A full queue's batches, the one under way and its own, and a second for the machine."""


@dataclass
class Answers:
    scored_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    without_hint: int = 0
    longest_queue: float = 0.0
    started: float = 0.0
    ended: float = 0.0


async def ask(transport: Transport, answers: Answers) -> None:
    picture = Image(data=bytes(32 * 32 * 3), height=32, width=32)
    request = ScoreRequest(items=[Item(prompt="a", image=picture)])
    begun = time.monotonic()
    try:
        response = await transport.score(request, timeout_s=30)
        kind = response.results[0].error
        if kind is None:
            answers.scored_s.append(time.monotonic() - begun)
        else:
            answers.other[str(kind.reason)] += 1
    except Overloaded as error:
        answers.refused_s.append(time.monotonic() - begun)
        answers.without_hint += error.retry_after_s is None
    except RewardError as error:
        answers.other[f"{type(error).__name__} {error.reason}"] += 1


async def flood(service: Service, seconds: float, answers: Answers) -> None:
    """Calls at a steady rate, however long their answers take."""
    transports = [
        open_transport(parse_url(url), Credentials()) for url in (service.http, service.grpc)
    ]
    looking = asyncio.create_task(watch_queue(service, answers))
    calls: set[asyncio.Task[None]] = set()
    number, started = 0, time.monotonic()
    answers.started = started
    while time.monotonic() - started < seconds:
        while number < (time.monotonic() - started) * CAPACITY * FACTOR:
            call = asyncio.create_task(ask(transports[number % 2], answers))
            calls.add(call)
            call.add_done_callback(calls.discard)
            number += 1
        await asyncio.sleep(0.005)
    answers.ended = time.monotonic()
    while calls:
        await asyncio.wait(calls)
    looking.cancel()
    for transport in transports:
        await transport.close()


async def watch_queue(service: Service, answers: Answers) -> None:
    def read() -> float:
        with urllib.request.urlopen(f"{service.http}/metrics", timeout=30) as answer:
            found = re.search(r"^reward_queue_items\S* (\S+)", answer.read().decode(), re.M)
        assert found is not None
        return float(found[1])

    while True:
        answers.longest_queue = max(answers.longest_queue, await asyncio.to_thread(read))
        await asyncio.sleep(0.2)


def judge(figures: Figures, answers: Answers, seen: Seen) -> None:
    seconds = answers.ended - answers.started
    scored, refused = len(answers.scored_s), len(answers.refused_s)
    total = scored + refused + sum(answers.other.values())
    # what was accepted at the end is answered after it
    goodput = scored / (seconds + ACCEPTED_S / 2)
    for name, times in (("scored", answers.scored_s), ("refused", answers.refused_s)):
        ms = [1000 * one for one in times]
        cells = [f"{percentile(ms, share):.0f}" for share in (0.5, 0.99)]
        figures.rows.append([name, f"{len(times):,}", *cells, f"{max(ms, default=0):.0f}"])
    figures.demand(
        f"asked for {FACTOR} times the capacity of {CAPACITY:.0f} images/s",
        f"{total / seconds / CAPACITY:.1f} times, {total:,} calls in {seconds:.0f} s",
        total / seconds > CAPACITY * FACTOR * 0.5,
    )
    figures.demand("goodput at least 90 %", f"{goodput / CAPACITY:.0%}", goodput > 0.9 * CAPACITY)
    figures.demand(
        "nothing but scores and refusals", f"{dict(answers.other) or 'yes'}", not answers.other
    )
    figures.demand(
        "every refusal says when to come back",
        f"{answers.without_hint} do not",
        not answers.without_hint,
    )
    slowest = percentile(answers.scored_s, 0.99)
    figures.demand(
        f"what is accepted is answered within {ACCEPTED_S:.1f} s at p99",
        f"{slowest:.1f} s",
        slowest <= ACCEPTED_S,
    )
    figures.demand(
        f"the queue at most {QUEUE_ITEMS}",
        f"{answers.longest_queue:.0f}",
        answers.longest_queue <= QUEUE_ITEMS,
    )
    seen.judge(figures)


def soak(options: argparse.Namespace) -> Figures:
    figures = Figures("overload", "Ten times overload")
    figures.header = ["calls", "number", "p50, ms", "p99, ms", "max, ms"]
    answers = Answers()
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Path(folder), log=True)
        flags = ["--delay-ms", str(BATCH_MS), "--max-batch-items", str(BATCH_ITEMS)]
        try:
            service = services.start(str(SCORER), *flags, "--max-queue-items", str(QUEUE_ITEMS))
            with watching(service) as seen:
                asyncio.run(flood(service, options.seconds, answers))
            judge(figures, answers, seen)
        finally:
            services.stop()
    return figures


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="(%(default)s)")
    return made


if __name__ == "__main__":
    run_part(soak, parser())
