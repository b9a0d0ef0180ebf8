"""One reward as an object: what both protocols call, and other code without sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import StrEnum
from typing import Any, Self

from reward_api.errors import (
    DeadlineExceeded,
    ItemFailure,
    Reason,
    Unavailable,
)
from reward_api.wire.messages import (
    GradientRequest,
    ItemError,
    ItemResult,
    RewardMetadata,
    ScoreRequest,
    ScoreResponse,
    Timing,
)
from reward_services import __version__
from reward_services.chassis.batching.admission import Admission, Decoded
from reward_services.chassis.batching.batcher import Batcher, Ticket
from reward_services.chassis.batching.isolation import Outcome
from reward_services.chassis.batching.item_queue import DEFAULT_PRIORITY
from reward_services.chassis.calls import Call, OpenCalls
from reward_services.chassis.idempotency import Answers
from reward_services.chassis.intake import Intake
from reward_services.chassis.metrics import Metrics
from reward_services.chassis.scorer import Scorer, ScorerInfo
from reward_services.chassis.settings import ServiceSettings, resolve_device
from reward_services.chassis.threads import bound_device_thread, bound_pool_thread

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Only READY takes work; the others are the reason that /readyz gives."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    WAITING = "waiting"
    DRAINING = "draining"
    FAILED = "failed"


_REFUSALS = {
    State.LOADING: (Reason.LOADING, "the model is still loading"),
    State.WARMING: (Reason.LOADING, "the model is still warming up"),
    State.WAITING: (Reason.CONNECTION, "what it depends on does not answer; see its log"),
    State.DRAINING: (Reason.DRAINING, "the service is shutting down; use another replica"),
    State.FAILED: (Reason.DEVICE_FAILED, "the device is lost; use another replica"),
}


def _refusal(name: str, state: State) -> Unavailable:
    reason, message = _REFUSALS[state]
    return Unavailable(reason, f"{name}: {message}", retry_after_s=1.0)


class RewardService:
    """Validates, decodes, batches and scores. Made inside a running event loop::

    async with RewardService("jpeg", JpegScorer(JpegScorer.Settings())) as service:
        response = await service.score(request, timeout_s=5.0)
    """

    def __init__(self, name: str, scorer: Scorer, settings: ServiceSettings | None = None) -> None:
        self.name = name
        self.settings = settings or ServiceSettings(**scorer.Settings.service_defaults)
        self.state = State.LOADING
        self.metrics = Metrics(name)
        self.device_lost: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Resolved when the device is gone: only a new process helps."""
        self._open_calls = OpenCalls()
        self._refuses = False
        self._scorer = scorer
        self._info: ScorerInfo | None = None
        self._device = ""
        self._intake = Intake(scorer, self.settings)
        self._batcher = Batcher(scorer, self.settings, self.metrics, self._on_device_lost)
        self.pool = ThreadPoolExecutor(
            self._intake.num_threads,
            thread_name_prefix="prepare",
            # after loading, which imports the libraries that it bounds: only a ready service prepares
            initializer=bound_pool_thread,
        )
        self.admission = Admission(
            max_items=self.settings.max_queue_items,
            max_bytes=self.settings.max_queue_bytes,
            retry_after_s=lambda: self._batcher.estimated_wait_s(DEFAULT_PRIORITY),
        )
        self.decoded = Decoded(self.settings.max_decoded_bytes)
        self.answers = Answers()
        self.metrics.watch(
            queue_items=lambda: len(self._batcher.queue),
            queue_bytes=lambda: self.admission.bytes,
            inflight=lambda: self._open_calls.count,
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def start(self) -> None:
        """Loads and warms up; raises what the scorer raised."""
        await self._batcher.start(self._load)
        self.metrics.describe(
            self.info.score,
            version=__version__,
            revision=self.info.revision,
            device=self._device,
        )
        self._set_state(State.READY)

    @property
    def has_dependency(self) -> bool:
        """Whether the scorer needs something elsewhere: `check_dependency` then makes sense."""
        return type(self._scorer).is_available is not Scorer.is_available

    async def check_dependency(self) -> bool:
        """Readiness follows what the scorer depends on; True when that changed."""
        available = await asyncio.to_thread(self._scorer.is_available)
        wanted = State.READY if available else State.WAITING
        if self.state is wanted or self.state not in (State.READY, State.WAITING):
            return False
        self._set_state(wanted)
        return True

    def announce_drain(self) -> None:
        """Readiness says no; calls are still taken, because balancers notice only after a while."""
        self._set_state(State.DRAINING)

    def refuse_new_calls(self) -> None:
        """From now on only what was accepted is finished."""
        self._refuses = True

    @property
    def inflight(self) -> int:
        return self._open_calls.count

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call is being worked on; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._open_calls.idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._batcher.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _set_state(self, state: State) -> None:
        if self.state is not State.FAILED:
            self.state = state
        self.metrics.ready.set(self.state is State.READY)

    def _load(self) -> None:
        """On the device thread: load, then one warm-up batch, so that the first caller pays for
        neither compilation nor allocation."""
        device = self.settings.device
        self._device = resolve_device(self._scorer.auto_device if device == "auto" else device)
        self._batcher.device = self._device
        self._scorer.load(self._device)
        bound_device_thread(self._device)
        self._info = self._scorer.info()
        self._intake.prompt_required = self._info.prompt_required
        self._set_state(State.WARMING)
        samples = [
            replace(s, prepared=self._scorer.prepare(s)) for s in self._scorer.warmup_samples()
        ]
        for outcome in self._scorer.score(samples) if samples else ():
            if isinstance(outcome, ItemFailure):
                raise outcome

    def _on_device_lost(self, error: BaseException) -> None:
        self._set_state(State.FAILED)
        if not self.device_lost.done():
            self.device_lost.set_result(error)

    def call(self, protocol: str) -> Call:
        return Call(self.metrics, self._open_calls, protocol)

    def check_ready(self) -> None:
        """Raises Unavailable unless the service takes work."""
        is_leaving = self.state is State.DRAINING and not self._refuses
        if self.state is not State.READY and not is_leaving:
            raise _refusal(self.name, self.state)

    @property
    def info(self) -> ScorerInfo:
        """Raises Unavailable while the model loads."""
        if self._info is None:
            raise _refusal(self.name, State.LOADING)
        return self._info

    def metadata(self) -> RewardMetadata:
        """Raises Unavailable while the model loads."""
        info = self.info
        return RewardMetadata(
            name=self.name,
            version=__version__,
            revision=info.revision,
            description=info.description,
            score=info.score,
            sub_scores=list(info.sub_scores),
            prompt_required=info.prompt_required,
            metadata_schema=info.metadata_schema,
            encodings=["raw", "png", "jpeg", "webp"],
            limits=self.settings.limits(),
            settings=_as_text(self._scorer.settings.model_dump(mode="json")),
            device=self._device,
            license=info.license,
            has_gradient=self._scorer.has_gradient,
        )

    def timeout_s(self, requested_s: float | None) -> float:
        """The time a call gets: what it asked for, bounded, or the default."""
        if requested_s is None:
            return self.settings.default_timeout_ms / 1000
        return min(requested_s, self.settings.max_timeout_ms / 1000)

    async def score(
        self, request: ScoreRequest, *, timeout_s: float | None = None, call: Call | None = None
    ) -> ScoreResponse:
        """One result per item, in order; of a GradientRequest with gradients.
        Cancelling the call takes its items out of the queue.

        Raises InvalidRequest, Overloaded, Unavailable or DeadlineExceeded for the call as a whole;
        what is wrong with one item is that item's error.
        """
        if call is None:
            with self.call("in-process") as call:
                return await self.score(request, timeout_s=timeout_s, call=call)
        if request.request_id or not call.request_id:
            call.name(request.request_id)
        call.num_items = len(request.items)
        limit_s = self.timeout_s(timeout_s)
        priority = request.priority or DEFAULT_PRIORITY
        self.check_ready()
        self._intake.check(self.name, request)
        if limit_s <= 0:
            raise DeadlineExceeded(Reason.DEADLINE, "the deadline was over when the call arrived")

        async def answer() -> ScoreResponse:
            self._batcher.check_deadline(priority, limit_s)
            return await self._answer(request, priority, call)

        try:
            async with asyncio.timeout(limit_s):
                # Gradients are as large as the images, and no judge's work.
                if call.idempotency_key and not isinstance(request, GradientRequest):
                    response = await self.answers.once(call.idempotency_key, request, answer)
                    # A joined or repeated call has an id of its own.
                    response = response.model_copy(update={"request_id": call.request_id})
                else:
                    response = await answer()
        except TimeoutError:
            raise DeadlineExceeded(
                Reason.DEADLINE, f"no answer within {limit_s:.3g} s; allow more time"
            ) from None
        call.response = response
        return response

    async def _answer(self, request: ScoreRequest, priority: int, call: Call) -> ScoreResponse:
        with self.admission.hold_items(len(request.items)), self.decoded.share() as hold:
            results, timing, sizes = await self._score_items(request, priority, call, hold)
        self.metrics.observe_results(results, timing)
        return ScoreResponse(
            model=self.name,
            version=__version__,
            revision=self.info.revision,
            request_id=call.request_id,
            results=results,
            timing=timing,
            batch_sizes=sizes,
        )

    async def _score_items(
        self, request: ScoreRequest, priority: int, call: Call, hold: Callable[[int], None]
    ) -> tuple[list[ItemResult], Timing, list[int]]:
        started = time.monotonic()
        ticket = self._batcher.open(len(request.items), priority)
        try:
            if self._intake.is_trivial(request):
                everything = range(len(request.items))
                ticket.submit(0, self._intake.prepare(request, everything, lambda: True))
            else:
                spans = self._intake.spans(request)
                await asyncio.gather(
                    *(self._prepare(ticket, request, span, hold) for span in spans)
                )
            decode_s = time.monotonic() - started
            outcomes = await ticket.outcomes()
        finally:
            self.metrics.cancelled_items.inc(ticket.close())
        results = [
            _result(item.id, outcome, request.include_details)
            for item, outcome in zip(request.items, outcomes, strict=True)
        ]
        timing = Timing(
            queue_ms=_ms(ticket.queue_s),
            decode_ms=_ms(decode_s),
            inference_ms=_ms(max((run.seconds for run in ticket.batches), default=0.0)),
            total_ms=_ms(call.elapsed_s),
        )
        return results, timing, [run.size for run in ticket.batches]

    async def _prepare(
        self, ticket: Ticket, request: ScoreRequest, span: range, hold: Callable[[int], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(
            self.pool, self._intake.prepare, request, span, lambda: ticket.is_open, hold
        )
        ticket.submit(span.start, prepared)


def _as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}


def _result(item_id: str, outcome: Outcome, include_details: bool) -> ItemResult:
    if isinstance(outcome, ItemFailure):
        return ItemResult(id=item_id, error=ItemError.of(outcome))
    if outcome.details is not None and not include_details:
        outcome = outcome.model_copy(update={"details": None})
    return ItemResult(id=item_id, score=outcome)


def _ms(seconds: float) -> float:
    """To the microsecond: people read these."""
    return round(seconds * 1000, 3)
