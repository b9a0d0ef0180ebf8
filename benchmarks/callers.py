"""The calling side, a process per contender so that its CPU time is its own:

    python callers.py http http://127.0.0.1:8100 --images 8 --callers 1

Each line on standard input is a number of seconds; `--callers` callers then call one after another
without pause for that long, and one line of JSON tells what it cost. Every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import pickle
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SIDE = 512

Call = Callable[[np.ndarray, list[str]], list[float]]
"""Scores uint8 [N, H, W, 3] for N prompts, over a connection of its own."""


def flask_caller(url: str) -> Call:
    import requests

    session = requests.Session()

    def call(images: np.ndarray, prompts: list[str]) -> list[float]:
        message = {"images": list(images), "prompts": prompts}
        answer = session.post(url, data=pickle.dumps(message), timeout=60)
        answer.raise_for_status()
        return pickle.loads(answer.content)["scores"]

    return call


def litserve_caller(url: str) -> Call:
    import requests

    session = requests.Session()

    def call(images: np.ndarray, prompts: list[str]) -> list[float]:
        data = [base64.b64encode(image).decode() for image in images]
        message = {"images": data, "shape": images.shape[1:], "prompts": prompts}
        answer = session.post(f"{url}/predict", json=message, timeout=60)
        answer.raise_for_status()
        return answer.json()["scores"]

    return call


class Work:
    """What every caller sends, and the answer it must get."""

    def __init__(self, images: int) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
        self.prompts = ['a sign that says "benchmark"'] * images
        self._expected = self.images[:, 0, 0, 0].astype(float).tolist()

    def check(self, scores: list[float]) -> None:
        if scores != self._expected:
            raise ValueError(f"got the scores {scores}, not {self._expected}")


class ThreadCallers:
    """Blocking callers, a thread each."""

    def __init__(self, make_call: Callable[[str], Call], url: str, count: int, work: Work) -> None:
        self._calls = [make_call(url) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._work = work

    def run(self, seconds: float) -> list[float]:
        ends = time.perf_counter() + seconds
        futures = [self._pool.submit(self._loop, call, ends) for call in self._calls]
        return [latency for future in futures for latency in future.result()]

    def _loop(self, call: Call, ends: float) -> list[float]:
        latencies = []
        while (started := time.perf_counter()) < ends:
            self._work.check(call(self._work.images, self._work.prompts))
            latencies.append(time.perf_counter() - started)
        return latencies


class OurCallers:
    """Tasks that share one AsyncRewardClient, as a trainer's do."""

    def __init__(self, url: str, count: int, work: Work) -> None:
        from reward_api.client import AsyncRewardClient

        self._client = AsyncRewardClient([url], encoding="raw")
        self._count = count
        self._work = work
        self._runner = asyncio.Runner()

    def run(self, seconds: float) -> list[float]:
        return self._runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> list[float]:
        ends = time.perf_counter() + seconds
        loops = await asyncio.gather(*(self._loop(ends) for _ in range(self._count)))
        return [latency for loop in loops for latency in loop]

    async def _loop(self, ends: float) -> list[float]:
        latencies = []
        while (started := time.perf_counter()) < ends:
            batch = await self._client.score(self._work.images, self._work.prompts)
            self._work.check(batch.values.tolist())
            latencies.append(time.perf_counter() - started)
        return latencies


def _serve(callers: Any, images: int) -> None:
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        latencies = callers.run(float(line))
        report = {
            "client_cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - started,
            "images": len(latencies) * images,
            "latencies_s": latencies,
        }
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls a service and reports what that cost.")
    parser.add_argument("kind", choices=("http", "grpc", "flask", "litserve"))
    parser.add_argument("url")
    parser.add_argument("--images", type=int, required=True, help="images of a call")
    parser.add_argument("--callers", type=int, required=True, help="calls at a time")
    options = parser.parse_args()
    work = Work(options.images)
    if options.kind in ("http", "grpc"):
        callers: Any = OurCallers(options.url, options.callers, work)
    else:
        make_call = {"flask": flask_caller, "litserve": litserve_caller}[options.kind]
        callers = ThreadCallers(make_call, options.url, options.callers, work)
    _serve(callers, options.images)


if __name__ == "__main__":
    main()
