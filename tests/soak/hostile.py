"""Hostile inputs on every protocol and dialect: `python tests/soak/hostile.py --inputs 100000`.

No input may end the process, get a 500 or its like in gRPC, hold up health, or leave memory behind.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attacks import IMAGES_PER_CALL, KINDS, MAY_CLOSE, WRONG, Shoot
from parts import Figures, percentile, run_part, say
from target import Target
from watch import HEALTH_MS, Seen, watching

from processes import Service, Services, environment
from reward_api import RewardClient

ROUNDS = 20
DIALECTS = "oip,flow-factory,unirl,get-reward,pickle"
GROWTH_MB = 64.0
"""Large pictures leave the allocator's arenas larger than they were."""
_THREADS = 4


@dataclass
class Kind:
    """What one kind of input got, over all rounds."""

    inputs: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[float, float]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)


@contextmanager
def gateway_of(service: Service, folder: Path) -> Iterator[Service]:
    command = [sys.executable, "-m", "reward_services.gateway", "--http-port", "0"]
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--reward", f"jpeg={service.http}"],
            env=environment(),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    url = process.stdout.readline().decode().split()[1]
    gateway = Service(process, url, "")
    try:
        yield gateway
    finally:
        gateway.stop()
        process.stdout.close()


def shoot_many(shoot: Shoot, count: int, target: Target, seed: int, kind: Kind) -> None:
    """From several threads, each with inputs of its own."""

    def work(number: int, share: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        found: Counter[str] = Counter()
        try:
            for _ in range(share):
                found[shoot(rng, target)] += 1
        finally:
            target.close()
            kind.answers.update(found)

    shares = [count // _THREADS + (i < count % _THREADS) for i in range(_THREADS)]
    threads = [
        threading.Thread(target=work, args=(i, s), daemon=True) for i, s in enumerate(shares)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)  # so that Ctrl-C is heard


def attack(
    options: argparse.Namespace, target: Target, services: list[Service], kinds: dict[str, Kind]
) -> None:
    """All kinds in turn, ROUNDS times, or until the time is over."""
    inputs, seed = options.inputs, options.seed
    ends = time.monotonic() + 60 * options.minutes
    for number in range(ROUNDS):
        if time.monotonic() > ends:
            break
        for name, (share, shoot) in KINDS.items():
            kind = kinds.setdefault(name, Kind())
            wanted = max(1, round(inputs * share / ROUNDS))
            per_call = IMAGES_PER_CALL if name == "images" else 1
            calls = -(-wanted // per_call)
            started = time.monotonic()
            shoot_many(shoot, calls, target, seed + 1000 * number, kind)
            kind.spans.append((started, time.monotonic()))
            kind.inputs += calls * per_call
            for service in services:
                assert service.process.poll() is None, (
                    f"a service ended with {service.process.returncode} during: {name}"
                )
        done = sum(kind.inputs for kind in kinds.values())
        say(f"hostile: {done} of {inputs} inputs, round {number + 1} of {ROUNDS}")


def judge(
    figures: Figures,
    kinds: dict[str, Kind],
    seen: Seen,
    of_gateway: Seen,
    idle: Seen,
    log_bytes: int,
) -> None:
    total = sum(kind.inputs for kind in kinds.values())
    for name, kind in kinds.items():
        watched = of_gateway if name == "gateway" else seen
        times = [ms for span in kind.spans for ms in watched.times("http_ms", *span)]
        times += [ms for span in kind.spans for ms in watched.times("grpc_ms", *span)]
        answers = ", ".join(f"{n} x {answer}" for answer, n in kind.answers.most_common(9))
        most = f"{max(times, default=0):.0f}"
        figures.rows.append(
            [name, f"{kind.inputs:,}", answers, f"{percentile(times, 0.99):.0f}", most]
        )
    wrong = {
        f"{name}: {answer}": n
        for name, kind in kinds.items()
        for answer, n in kind.answers.items()
        if answer in WRONG
        or answer.startswith("got past")
        or (answer == "closed" and name not in MAY_CLOSE)
    }
    figures.demand(
        "inputs without a 500 or its like", f"{total:,} inputs, {wrong or 'none'}", not wrong
    )
    slow = [row[0] for row in figures.rows if float(row[3]) > HEALTH_MS]
    figures.demand("that for every kind of input by itself", ", ".join(slow) or "yes", not slow)
    seen.judge(figures, growth_mb=GROWTH_MB)
    figures.notes.append(
        f"An idle service beside it, under the same load of the machine, answered for its health within "
        f"{idle.p99('http_ms'):.0f} ms at p99 ({max(idle.times('http_ms'), default=0):.0f} at most). "
        f"The log took {log_bytes / total:.0f} bytes per input."
    )


def soak(options: argparse.Namespace) -> Figures:
    figures = Figures("hostile", "Hostile inputs")
    figures.header = ["input", "inputs", "answers", "health p99, ms", "health max, ms"]
    kinds: dict[str, Kind] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "token").write_text("a-secret-of-the-soak")
        services = Services(folder, log=True)
        try:
            jpeg = ["-m", "reward_services", "jpeg", "--reflection", "--dialects", DIALECTS]
            service = services.start(*jpeg)
            token = str(folder / "token")
            guarded = services.start(*jpeg, "--token-file", token, wait_ready=False)
            resting = services.start(*jpeg)
            with gateway_of(service, folder) as gateway:
                target = Target(
                    service.http, service.grpc, gateway.http, guarded.http, folder / "executed"
                )
                running = [service, guarded, gateway]
                with (
                    watching(gateway) as of_gateway,
                    watching(resting) as idle,
                    watching(service) as seen,
                ):
                    attack(options, target, running, kinds)
                survivors_score(figures, service)
            log_bytes = (folder / "log0.txt").stat().st_size
            judge(figures, kinds, seen, of_gateway, idle, log_bytes)
            figures.demand("no pickle executed", "none", not target.marker.exists())
        finally:
            services.stop()
    return figures


def survivors_score(figures: Figures, service: Service) -> None:
    """What a well-behaved caller gets afterwards."""
    import numpy as np

    image = np.full((1, 32, 32, 3), 90, np.uint8)
    found = []
    for url in (service.http, service.grpc):
        with RewardClient(url) as client:
            found.append(float(client.score(image, ["a"]).values[0]))
    figures.demand("the service scores afterwards", f"{found}", found[0] == found[1])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--inputs", type=int, default=100_000, help="(%(default)s)")
    made.add_argument("--minutes", type=float, default=18.0, help="most time (%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of the inputs (%(default)s)")
    return made


if __name__ == "__main__":
    run_part(soak, parser())
