"""Prometheus metrics of one service, in a registry of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from reward_api.errors import Reason
from reward_api.wire.messages import ItemResult, ScoreRange, Timing

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_UNBOUNDED_SCORES = (-10, -5, -2, -1, -0.5, -0.2, 0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


@dataclass
class Totals:
    """Sums since the start, for protocols that ask for them (Triton's statistics)."""

    items: int = 0
    batches: int = 0
    successes: int = 0
    failures: int = 0
    success_ns: int = 0
    failure_ns: int = 0
    queue_ns: int = 0
    decode_ns: int = 0
    inference_ns: int = 0
    last_answer_ms: int = 0
    """Unix time of the last answered call; 0: none yet."""

    def count(self, seconds: float, *, is_success: bool) -> None:
        nanoseconds = int(seconds * 1e9)
        if is_success:
            self.successes += 1
            self.success_ns += nanoseconds
            self.last_answer_ms = int(time.time() * 1000)
        else:
            self.failures += 1
            self.failure_ns += nanoseconds

    def add_stages(self, num_scored: int, timing: Timing) -> None:
        self.items += num_scored
        self.queue_ns += int(timing.queue_ms * 1e6)
        self.decode_ns += int(timing.decode_ms * 1e6)
        self.inference_ns += int(timing.inference_ms * 1e6)


class Metrics:
    def __init__(self, model: str) -> None:
        self._model = model
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # start time, CPU, memory
        self._requests = Counter(
            "reward_requests_total",
            "Calls answered; code is the HTTP status or the gRPC status name.",
            ("model", "protocol", "code"),
            registry=registry,
        )
        self._items = Counter(
            "reward_items_total", "Items answered.", ("model", "outcome"), registry=registry
        )
        self._request_seconds = Histogram(
            "reward_request_duration_seconds",
            "From the first byte to the answer.",
            ("model", "protocol"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "reward_stage_duration_seconds",
            "Time of a request in one stage: queue, decode, inference.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_items = Histogram(
            "reward_batch_items", "Items in a model batch.", buckets=_ITEMS, registry=registry
        )
        self._batch_seconds = Histogram(
            "reward_batch_duration_seconds",
            "Time of a model batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_items = Gauge(
            "reward_queue_items", "Items waiting for a batch.", registry=registry
        )
        self._queue_bytes = Gauge(
            "reward_queue_bytes", "Request bytes held in memory.", registry=registry
        )
        self._inflight = Gauge(
            "reward_inflight_requests", "Calls being worked on.", registry=registry
        )
        self._rejections = Counter(
            "reward_rejections_total", "Calls refused or failed.", ("reason",), registry=registry
        )
        self._item_errors = Counter(
            "reward_item_errors_total", "Items without a score.", ("reason",), registry=registry
        )
        self.cancelled_items = Counter(
            "reward_cancelled_items_total",
            "Items whose caller went away or whose deadline passed.",
            registry=registry,
        )
        self.received_bytes = Counter(
            "reward_received_bytes_total", "Bytes of request bodies.", registry=registry
        )
        self.out_of_memory = Counter(
            "reward_out_of_memory_total", "Batches that did not fit.", registry=registry
        )
        self.ready = Gauge("reward_ready", "1 when the service takes work.", registry=registry)
        self._build_info = Gauge(
            "reward_build_info",
            "Always 1; the labels tell what runs.",
            ("version", "revision", "device"),
            registry=registry,
        )
        self.totals = Totals()
        self._scores: Histogram | None = None
        # Looked up once: finding a child by its labels costs more than counting.
        self._scored = self._items.labels(model, "score")
        self._failed = self._items.labels(model, "error")
        self._stages = {
            stage: self._stage_seconds.labels(stage) for stage in ("queue", "decode", "inference")
        }
        self._calls: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def describe(self, score: ScoreRange, *, version: str, revision: str, device: str) -> None:
        """What is known only after loading: build labels and the score's range."""
        self._build_info.labels(version, revision, device).set(1)
        self._scores = Histogram(
            "reward_score",
            "The main score, to see drift.",
            buckets=_score_buckets(score),
            registry=self.registry,
        )

    def watch(
        self,
        *,
        queue_items: Callable[[], float],
        queue_bytes: Callable[[], float],
        inflight: Callable[[], float],
    ) -> None:
        """Reads the gauges when they are scraped."""
        self._queue_items.set_function(queue_items)
        self._queue_bytes.set_function(queue_bytes)
        self._inflight.set_function(inflight)

    def observe_batch(self, size: int, seconds: float) -> None:
        self.totals.batches += 1
        self._batch_items.observe(size)
        self._batch_seconds.observe(seconds)

    def observe_results(self, results: Sequence[ItemResult], timing: Timing) -> None:
        failed = 0
        for result in results:
            if result.error:
                failed += 1
                self._item_errors.labels(result.error.reason).inc()
            elif result.score and self._scores is not None:
                self._scores.observe(result.score.value)
        self.totals.add_stages(len(results) - failed, timing)
        self._failed.inc(failed)
        self._scored.inc(len(results) - failed)
        self._stages["queue"].observe(timing.queue_ms / 1000)
        self._stages["decode"].observe(timing.decode_ms / 1000)
        self._stages["inference"].observe(timing.inference_ms / 1000)

    def observe_call(
        self, protocol: str, code: str, seconds: float, reason: Reason | None = None
    ) -> None:
        known = self._calls.get((protocol, code))
        if known is None:
            known = self._calls[protocol, code] = (
                self._requests.labels(self._model, protocol, code),
                self._request_seconds.labels(self._model, protocol),
            )
        requests, request_seconds = known
        requests.inc()
        request_seconds.observe(seconds)
        self.totals.count(seconds, is_success=reason is None)
        if reason is not None:
            self._rejections.labels(reason).inc()

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


def _score_buckets(score: ScoreRange, count: int = 20) -> Sequence[float]:
    low, high = score.minimum, score.maximum
    if low is None or high is None or high <= low:
        return _UNBOUNDED_SCORES
    return [low + (high - low) * i / count for i in range(count + 1)]
