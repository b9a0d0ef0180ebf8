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
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from bare_server import ANSWER, LENGTH_BYTES, METHOD

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


class BareSocketCaller:
    """One connection, blocking."""

    def __init__(self, url: str, work: Work) -> None:
        host, _, port = url.rpartition("/")[2].rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = work.images.reshape(-1).data

    def run(self, seconds: float) -> list[float]:
        latencies = []
        ends = time.perf_counter() + seconds
        while (started := time.perf_counter()) < ends:
            self._socket.sendall(len(self._data).to_bytes(LENGTH_BYTES, "big"))
            self._socket.sendall(self._data)
            _check_bare(self._socket.recv(len(ANSWER), socket.MSG_WAITALL))
            latencies.append(time.perf_counter() - started)
        return latencies


class BareGrpcCaller:
    """One grpc.aio channel, bytes that exist already."""

    def __init__(self, url: str, work: Work) -> None:
        self._target = url.rpartition("/")[2]
        self._data = work.images.tobytes()
        self._runner = asyncio.Runner()
        self._call = self._runner.run(self._connect())

    async def _connect(self) -> Any:
        import grpc

        options = [("grpc.max_send_message_length", -1)]
        return grpc.aio.insecure_channel(self._target, options).unary_unary(METHOD)

    def run(self, seconds: float) -> list[float]:
        return self._runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> list[float]:
        latencies = []
        ends = time.perf_counter() + seconds
        while (started := time.perf_counter()) < ends:
            _check_bare(await self._call(self._data))
            latencies.append(time.perf_counter() - started)
        return latencies


def _check_bare(answer: bytes) -> None:
    if answer != ANSWER:
        raise ValueError(f"got {answer!r}, not {ANSWER!r}")


class Work:
    """What every caller sends, and the answer it must get."""

    def __init__(self, images: int, side: int) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (images, side, side, 3), np.uint8)
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


class Unkeyed:
    """A transport whose calls carry no idempotency key. It connects in the event loop that calls."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _inner(self) -> Any:
        from reward_api.transport.base import Credentials, parse_url
        from reward_api.transport.open import open_transport

        return open_transport(parse_url(self._url), Credentials())

    async def score(self, request: Any, *, timeout_s: float) -> Any:
        bare = request.model_copy(update={"request_id": ""})  # the key is the request's id
        return await self._inner.score(bare, timeout_s=timeout_s)

    async def metadata(self, *, timeout_s: float) -> Any:
        return await self._inner.metadata(timeout_s=timeout_s)

    async def ready(self, *, timeout_s: float) -> None:
        await self._inner.ready(timeout_s=timeout_s)

    async def close(self) -> None:
        await self._inner.close()


class OurCallers:
    """Tasks that share one AsyncRewardClient, as a trainer's do."""

    def __init__(self, url: str, count: int, work: Work, *, has_keys: bool) -> None:
        from reward_api.client import AsyncRewardClient

        if has_keys:
            self._client = AsyncRewardClient([url], encoding="raw")
        else:
            self._client = AsyncRewardClient(transport=Unkeyed(url), encoding="raw")
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


KINDS = (
    "http",
    "grpc",
    "http-unkeyed",
    "grpc-unkeyed",
    "flask",
    "litserve",
    "bare-socket",
    "bare-grpc",
)


def _make_callers(kind: str, url: str, count: int, work: Work) -> Any:
    match kind:
        case "http" | "grpc":
            return OurCallers(url, count, work, has_keys=True)
        case "http-unkeyed" | "grpc-unkeyed":
            return OurCallers(url, count, work, has_keys=False)
        case "flask":
            return ThreadCallers(flask_caller, url, count, work)
        case "litserve":
            return ThreadCallers(litserve_caller, url, count, work)
        case "bare-socket":
            return BareSocketCaller(url, work)
        case "bare-grpc":
            return BareGrpcCaller(url, work)
        case _:
            raise ValueError(f"kind={kind!r}: choose one of {KINDS}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls a service and reports what that cost.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("url")
    parser.add_argument("--images", type=int, required=True, help="images of a call")
    parser.add_argument("--side", type=int, default=512, help="of an image, pixels (%(default)s)")
    parser.add_argument("--callers", type=int, required=True, help="calls at a time")
    options = parser.parse_args()
    work = Work(options.images, options.side)
    callers = _make_callers(options.kind, options.url, options.callers, work)
    _serve(callers, options.images)


if __name__ == "__main__":
    main()
