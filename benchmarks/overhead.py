"""What the services themselves cost: CPU time per image with a model that does nothing.

Raw 512 x 512 images in calls of 8, one call at a time, server and client on this machine. CPU time,
unlike the time on the clock, is nearly the same on a busy machine; of all rounds the least disturbed
one counts. Everything is measured twice: with glibc's default malloc, and with the settings that
benchmarks/README.md explains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median

from harness import (
    TUNED_MALLOC,
    Bench,
    BenchmarkFailed,
    Running,
    add_common_options,
    bare_server,
    chosen,
    conditions,
    litserve_server,
    markdown,
    our_service,
    sync_worker,
    take_turns,
    write_json,
)

BATCH = 8

CONTENDERS = (
    our_service("http", "this service, HTTP"),
    our_service("grpc", "this service, gRPC"),
    our_service("http-unkeyed", "this service, HTTP, no idempotency key"),
    our_service("grpc-unkeyed", "this service, gRPC, no idempotency key"),
    sync_worker("Flask + pickle, gunicorn sync worker"),
    litserve_server("LitServe, JSON + base64"),
    bare_server("socket", "a TCP socket alone"),
    bare_server("grpc", "grpc.aio alone"),
)

# CPU ms per image that server and client may each take, with tuned malloc.
TARGETS_MS = {"http": 0.35, "grpc": 0.50}

Pair = tuple[Running, Running]
"""Default and tuned malloc."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_options(parser, rounds=8)
    options = parser.parse_args()
    contenders = chosen(CONTENDERS, options.only)
    with Bench(images=BATCH, callers=1, side=options.side) as bench:
        pairs = [(bench.start(c), bench.start(c, TUNED_MALLOC)) for c in contenders]
        take_turns(
            (one for pair in pairs for one in pair), rounds=options.rounds, seconds=options.seconds
        )
    print(markdown(*_table(pairs)))
    print(f"\nCPU ms per image: least of the rounds (median). {conditions(options)}\n")
    for line in _verdicts(pairs):
        print(line)
    write_json(
        options.json,
        {
            "conditions": conditions(options),
            "rounds": {
                pair[0].contender.name: {
                    malloc: [asdict(r) for r in one.rounds]
                    for malloc, one in zip(("default", "tuned"), pair, strict=True)
                }
                for pair in pairs
            },
        },
    )


def _table(pairs: list[Pair]) -> tuple[list[str], list[list[str]]]:
    header = ["", "server", "client", "server, tuned malloc", "client, tuned malloc", "images/s"]
    rows = []
    for pair in pairs:
        cells = [
            f"{min(values):.2f} ({median(values):.2f})"
            for one in pair
            for values in ([r.server_ms for r in one.rounds], [r.client_ms for r in one.rounds])
        ]
        rows.append([pair[0].contender.name, *cells, f"{_images_per_s(pair[1]):.0f}"])
    return header, rows


def _images_per_s(one: Running) -> float:
    return max(r.images_per_s for r in one.rounds)


def _verdicts(pairs: list[Pair]) -> Iterator[str]:
    for _, tuned in pairs:
        target = TARGETS_MS.get(tuned.contender.caller)
        if target is None:
            continue
        server = min(r.server_ms for r in tuned.rounds)
        client = min(r.client_ms for r in tuned.rounds)
        word = "met" if max(server, client) <= target else "missed"
        yield (
            f"- {tuned.contender.name}: {server:.2f} + {client:.2f} ms, tuned malloc; "
            f"target {target:.2f} + {target:.2f}: {word}"
        )


if __name__ == "__main__":
    try:
        main()
    except BenchmarkFailed as error:
        sys.exit(str(error))
