"""The gateway's HTTP routes: UniRL's, cosmos-rl's, and /v1/score for several rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from reward_api.batch import ScoreBatch
from reward_api.errors import InvalidRequest, ItemsFailed, Overloaded, Reason, RewardError
from reward_api.wire.images import unpack
from reward_api.wire.messages import ItemError, ItemScore, ScoreRequest
from reward_services import __version__
from reward_services.chassis.http.body import expected_bytes, read_body
from reward_services.chassis.http.call import check_encoding
from reward_services.chassis.http.problems import plain_problem, problem_response
from reward_services.dialects import unirl
from reward_services.dialects.common import image_of, json_error, read_json
from reward_services.gateway.cosmos import CosmosQueue, NotYet, split_body
from reward_services.gateway.metrics import Counted, GatewayMetrics
from reward_services.gateway.rewards import Asked, Rewards

Answer = dict[str, Any] | list[Any]
T = TypeVar("T")

_INLINE_PARSE_BYTES = 16 * 1024


class GatewayRequest(ScoreRequest):
    rewards: list[str] = Field(default_factory=list)
    """which to ask; none: all of them"""


class Bodies:
    """Reads request bodies; those held at a time are bounded in bytes."""

    def __init__(self, max_request_bytes: int, max_held_bytes: int) -> None:
        self._max_request, self._max_held = max_request_bytes, max_held_bytes
        self.held = 0

    async def handle(
        self, request: Request, answer: Callable[[memoryview], Awaitable[Answer]]
    ) -> Response:
        """Raises RewardError."""
        check_encoding(request.headers)
        size = expected_bytes(request.headers, self._max_request)
        if self.held and self.held + size > self._max_held:
            raise Overloaded(
                Reason.QUEUE_FULL, "the gateway holds all the bytes it may", retry_after_s=1.0
            )
        with self._hold(size):
            return JSONResponse(await answer(await read_body(request, self._max_request)))

    def hold_for(self, work: Sequence[asyncio.Task[Any]], size: int) -> None:
        """Counts `size` bytes, which an answered request has left behind, until `work` has ended."""
        self.held += size
        left = len(work)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.held -= size

        for task in work:
            task.add_done_callback(ended)

    @contextmanager
    def _hold(self, size: int) -> Iterator[None]:
        self.held += size
        try:
            yield
        finally:
            self.held -= size


ROUTES = frozenset(
    {
        *("/livez", "/readyz", "/health", "/metrics", "/rewards", "/score", "/v1/score"),
        *("/api/reward/enqueue", "/api/reward/pull", "/api/reward/ping"),
    }
)


def counted(app: ASGIApp, metrics: GatewayMetrics) -> ASGIApp:
    """The app with its calls counted, refused ones too when `app` has the token's check in it."""
    return Counted(app, metrics, ROUTES)


def create_app(rewards: Rewards, bodies: Bodies, metrics: GatewayMetrics) -> FastAPI:
    app = FastAPI(title="reward gateway", version=__version__, docs_url=None, redoc_url=None)
    queue = CosmosQueue(rewards)
    app.state.queue = queue
    metrics.watch(held=lambda: bodies.held, waiting=lambda: len(queue))

    @app.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    @app.get("/health")
    async def health() -> Response:
        states = await rewards.states()
        is_ready = all(state == "ready" for state in states.values())
        status = "ok" if is_ready else "unavailable"
        return JSONResponse({"status": status, "rewards": states}, 200 if is_ready else 503)

    @app.get("/rewards")
    async def names() -> dict[str, list[str]]:
        return {"rewards": rewards.names}

    @app.post("/score")
    async def score_unirl(request: Request) -> Response:
        return await bodies.handle(request, lambda body: _unirl(rewards, body))

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        request.state.answer = problem_response
        return await bodies.handle(request, lambda body: _own(rewards, body))

    _add_cosmos(app, bodies, queue)
    app.add_exception_handler(RewardError, _on_reward_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    return app


def _add_cosmos(app: FastAPI, bodies: Bodies, queue: CosmosQueue) -> None:
    @app.post("/api/reward/enqueue")
    async def enqueue(request: Request) -> Response:
        async def answer(body: memoryview) -> Answer:
            key = queue.enqueue(*await _parsed(split_body, body))
            bodies.hold_for(queue.work(key), len(body))
            return {"uuid": key}

        request.state.answer = _cosmos_error
        return await bodies.handle(request, answer)

    @app.post("/api/reward/pull")
    async def pull(request: Request) -> Response:
        async def answer(body: memoryview) -> Answer:
            return await queue.pull(body)

        request.state.answer = _cosmos_error
        return await bodies.handle(request, answer)

    @app.post("/api/reward/ping")
    async def ping() -> dict[str, str]:
        return {"message": "pong"}


async def _parsed(read: Callable[[memoryview], T], body: memoryview) -> T:
    """A body with much to read is read on a thread: the event loop also answers health checks."""
    return read(body) if len(body) <= _INLINE_PARSE_BYTES else await asyncio.to_thread(read, body)


def _read_unirl(body: memoryview) -> tuple[unirl.ScoreBody, dict[str, list[int]], dict[str, Asked]]:
    """The request, and by reward: which turns it is asked about, and what."""
    asked = read_json(unirl.ScoreBody, body)
    unirl.check_form(asked)
    _check_pins(asked)
    by_reward: dict[str, list[int]] = {}
    for i, one in enumerate(asked.requests):
        for name in dict.fromkeys(one.required_rewards):
            by_reward.setdefault(name, []).append(i)
    turns = [one.history[0] for one in asked.requests]
    return (
        asked,
        by_reward,
        {
            name: Asked(
                [image_of(turns[i].image_b64 or "") for i in indices],
                [turns[i].text for i in indices],
                [asked.requests[i].metadata for i in indices],
            )
            for name, indices in by_reward.items()
        },
    )


async def _unirl(rewards: Rewards, body: memoryview) -> Answer:
    asked, by_reward, batch_of = await _parsed(_read_unirl, body)
    batches = await rewards.score(batch_of)
    results: list[dict[str, Any]] = [{} for _ in asked.requests]
    errors: list[dict[str, str]] = [{} for _ in asked.requests]
    for name, indices in by_reward.items():
        batch = batches[name]
        for position, i in enumerate(indices):
            if position in batch.errors:
                errors[i][name] = str(batch.errors[position])
            else:
                score = _score_of(batch, position)
                results[i][name] = {"score": score.value, **score.scores}
    return {
        "results": results,
        "errors": errors,
        "identities": [unirl.identity(one, _revision(one, batches)) for one in asked.requests],
        "protocol_version": unirl.PROTOCOL_VERSION,
    }


def _check_pins(asked: unirl.ScoreBody) -> None:
    """Raises InvalidRequest."""
    for i, one in enumerate(asked.requests):
        if one.scorer_version is not None:
            raise InvalidRequest(
                Reason.INVALID_REQUEST,
                f"requests[{i}] pins scorer_version {one.scorer_version!r}: a gateway has several "
                "scorers; leave expected_scorer_version out, or ask one service",
            )


def _revision(one: unirl.RewardRequest, batches: dict[str, ScoreBatch]) -> str:
    """Of its only reward, or name=revision for each."""
    found = {name: ",".join(sorted(batches[name].revisions)) for name in one.required_rewards}
    if len(found) == 1:
        return next(iter(found.values()))
    return ";".join(f"{name}={revision}" for name, revision in found.items())


async def _own(rewards: Rewards, body: memoryview) -> Answer:
    asked = await _parsed(partial(read_json, GatewayRequest), body)
    if not asked.items:
        raise InvalidRequest(Reason.INVALID_REQUEST, "items is empty: send at least one")
    images = [item.image for item in asked.items]
    if asked.packed_images is not None:
        images = unpack(asked.packed_images)
    one = Asked(
        [image or image_of("") for image in images],
        [item.prompt for item in asked.items],
        [item.metadata for item in asked.items],
        asked.include_details,
    )
    batches = await rewards.score(dict.fromkeys(asked.rewards or rewards.own_names, one))
    return {
        "results": [
            {
                "id": item.id,
                "rewards": {name: _outcome(batch, i) for name, batch in batches.items()},
            }
            for i, item in enumerate(asked.items)
        ],
        "revisions": {name: sorted(batch.revisions) for name, batch in batches.items()},
    }


def _outcome(batch: ScoreBatch, index: int) -> dict[str, Any]:
    if index in batch.errors:
        return {"error": ItemError.of(batch.errors[index]).model_dump()}
    return {"score": _score_of(batch, index).model_dump(exclude_none=True)}


def _score_of(batch: ScoreBatch, index: int) -> ItemScore:
    scores = {name: float(v[index]) for name, v in batch.scores.items() if v[index] == v[index]}
    return ItemScore(value=float(batch.values[index]), scores=scores, details=batch.details[index])


async def _on_reward_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RewardError)
    return getattr(request.state, "answer", json_error)(error, None)


def _cosmos_error(error: RewardError, _: object) -> Response:
    """Its client repeats 408, 425, 429 and 5xx, and ends the training on every other."""
    if isinstance(error, NotYet):
        status = 425
    else:
        status = 400 if isinstance(error, (ItemsFailed, InvalidRequest)) else error.http_status
    return JSONResponse({"message": str(error)}, status)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return plain_problem(error.status_code, detail, error.headers, with_error=True)
