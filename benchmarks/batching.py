"""Do calls of different callers share batches? Eight callers, one image each, a 10 ms model.

The model sleeps 10 ms per batch, whatever its size, so a service that takes one image at a time
cannot answer more than 100 a second; the same service with batching is compared with that. Raw
512 x 512 images; each caller calls again as soon as it has its answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median, quantiles

from harness import (
    TUNED_MALLOC,
    Bench,
    BenchmarkFailed,
    Contender,
    Running,
    add_common_options,
    chosen,
    conditions,
    litserve_server,
    markdown,
    our_service,
    sync_worker,
    take_turns,
    write_json,
)

CALLERS = 8
SLEEP_MS = 10
TARGET_RATIO = 3.0

_SLEEP = ("--sleep-ms", str(SLEEP_MS))
_ONE_BY_ONE = ("--max-batch-items", "1")

# Each batched service, and the same one without batching.
PAIRS = (
    (
        our_service("http", "this service, HTTP", *_SLEEP),
        our_service("http", "this service, HTTP, unbatched", *_SLEEP, *_ONE_BY_ONE),
    ),
    (
        our_service("grpc", "this service, gRPC", *_SLEEP),
        our_service("grpc", "this service, gRPC, unbatched", *_SLEEP, *_ONE_BY_ONE),
    ),
    (
        litserve_server("LitServe, batches of 8", *_SLEEP, "--max-batch-size", str(CALLERS)),
        litserve_server("LitServe, unbatched", *_SLEEP),
    ),
)
ALONE = (sync_worker("Flask + pickle, gunicorn sync worker", NOOP_SLEEP_MS=str(SLEEP_MS)),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_options(parser, rounds=6)
    options = parser.parse_args()
    contenders = chosen((*(c for pair in PAIRS for c in pair), *ALONE), options.only)
    with Bench(images=1, callers=CALLERS, side=options.side) as bench:
        all_running = [bench.start(c, TUNED_MALLOC) for c in contenders]
        take_turns(all_running, rounds=options.rounds, seconds=options.seconds)
    by_contender = {one.contender: one for one in all_running}
    print(markdown(*_table(by_contender)))
    print(f"\nImages/s: best round (median). Latency of all calls. {conditions(options)}\n")
    for line in _verdicts(by_contender):
        print(line)
    write_json(
        options.json,
        {
            "conditions": conditions(options),
            "rounds": {one.contender.name: [asdict(r) for r in one.rounds] for one in all_running},
        },
    )


def _table(running: dict[Contender, Running]) -> tuple[list[str], list[list[str]]]:
    header = ["", "images/s", "times unbatched", "p50 ms", "p99 ms"]
    unbatched = dict(PAIRS)
    rows = []
    for contender, one in running.items():
        latencies_ms = [s * 1000 for r in one.rounds for s in r.latencies_s]
        percentiles = quantiles(latencies_ms, n=100, method="inclusive")
        reference = running.get(unbatched[contender]) if contender in unbatched else None
        rows.append(
            [
                contender.name,
                f"{_images_per_s(one):.0f} ({median(r.images_per_s for r in one.rounds):.0f})",
                f"{_images_per_s(one) / _images_per_s(reference):.1f}" if reference else "",
                f"{percentiles[49]:.0f}",
                f"{percentiles[98]:.0f}",
            ]
        )
    return header, rows


def _images_per_s(one: Running) -> float:
    return max(r.images_per_s for r in one.rounds)


def _verdicts(running: dict[Contender, Running]) -> Iterator[str]:
    for batched, unbatched in PAIRS:
        if batched.caller == "litserve" or not {batched, unbatched} <= running.keys():
            continue
        ratio = _images_per_s(running[batched]) / _images_per_s(running[unbatched])
        word = "met" if ratio >= TARGET_RATIO else "missed"
        yield f"- {batched.name}: {ratio:.1f} x unbatched; target {TARGET_RATIO:g} x: {word}"


if __name__ == "__main__":
    try:
        main()
    except BenchmarkFailed as error:
        sys.exit(str(error))
