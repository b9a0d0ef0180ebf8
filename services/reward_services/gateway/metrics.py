"""Prometheus metrics of a gateway: calls by route, items by reward, bytes held."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_api.batch import ScoreBatch

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class GatewayMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "reward_gateway_requests_total", "Calls answered.", ("route", "code"), registry=registry
        )
        self._seconds = Histogram(
            "reward_gateway_request_duration_seconds",
            "From the first byte to the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._items = Counter(
            "reward_gateway_items_total",
            "Images that a reward was asked about.",
            ("reward", "outcome"),
            registry=registry,
        )
        self._errors = Counter(
            "reward_gateway_item_errors_total",
            "Images to which a reward gave no score.",
            ("reward", "reason"),
            registry=registry,
        )
        self._held = Gauge(
            "reward_gateway_held_bytes", "Request bytes held in memory.", registry=registry
        )
        self._waiting = Gauge(
            "reward_gateway_waiting_batches",
            "Batches of cosmos-rl that wait to be pulled.",
            registry=registry,
        )

    def watch(self, *, held: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Reads the gauges when they are scraped."""
        self._held.set_function(held)
        self._waiting.set_function(waiting)

    def observe_batch(self, reward: str, batch: ScoreBatch) -> None:
        for failure in batch.errors.values():
            self._errors.labels(reward, failure.reason).inc()
        self._items.labels(reward, "error").inc(len(batch.errors))
        self._items.labels(reward, "score").inc(len(batch.valid) - len(batch.errors))

    def observe_call(self, route: str, code: int, seconds: float) -> None:
        self._requests.labels(route, code).inc()
        self._seconds.labels(route).observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts the calls of known routes; others share the label "other"."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = time.perf_counter(), 499

        async def sent(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.observe_call(route, code, time.perf_counter() - started)
