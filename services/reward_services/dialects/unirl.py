"""UniRL's reward service: POST /score, GET /rewards, GET /health (protocol version 1)."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.messages import ItemResult, ScoreRequest
from reward_services.chassis.http.call import HttpCall, http_call
from reward_services.chassis.service import RewardService
from reward_services.dialects.common import (
    Body,
    dialect_router,
    health,
    image_of,
    json_error,
    read_json,
    request_of,
)

PROTOCOL_VERSION = "1"

# What a caller may attach to an item and gets back; the scorer's version is ours to fill in.
_IDENTITY = (
    "request_id",
    "sample_id",
    "group_id",
    "source_rank",
    "policy_version",
    "scorer_version",
    "idempotency_key",
)


class Turn(Body):
    text: str
    image_b64: str | None = None


class RewardRequest(Body):
    history: list[Turn]
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None
    request_id: str | None = None
    sample_id: str | None = None
    group_id: str | None = None
    source_rank: int | None = None
    policy_version: int | None = None
    scorer_version: str | None = None
    idempotency_key: str | None = None


class ScoreBody(Body):
    protocol_version: str = PROTOCOL_VERSION
    requests: list[RewardRequest]
    grad_mode: bool = False


router = dialect_router(json_error)
router.get("/health")(health)


@router.get("/rewards")
async def rewards(request: Request) -> dict[str, list[str]]:
    return {"rewards": [request.app.state.service.name]}


@router.post("/score")
async def score(request: Request) -> Response:
    async with http_call(request, "unirl") as call:
        body = await call.body()
        asked = await call.parse(partial(read_json, ScoreBody, body), len(body))
        _check(asked, call.service)
        results = await _score(call, asked.requests)
        revision = call.service.info.revision
    return JSONResponse(_answer(asked.requests, results, call.service.name, revision))


async def _score(call: HttpCall, requests: list[RewardRequest]) -> list[ItemResult]:
    if not requests:
        return []
    size = sum(len(one.history[0].image_b64 or "") for one in requests)
    message = await call.parse(partial(_message, requests), size)
    return (await call.score(message)).results


def _message(requests: list[RewardRequest]) -> ScoreRequest:
    turns = [one.history[0] for one in requests]
    return request_of(
        [image_of(turn.image_b64 or "") for turn in turns],
        [turn.text for turn in turns],
        [one.metadata for one in requests],
    )


def check_form(asked: ScoreBody) -> None:
    """What no service here can do. Raises InvalidRequest."""
    if asked.protocol_version != PROTOCOL_VERSION:
        raise _invalid(f"protocol_version is {asked.protocol_version!r}, not {PROTOCOL_VERSION!r}")
    if asked.grad_mode:
        raise _invalid("grad_mode: scores of this service have no gradients")
    for i, one in enumerate(asked.requests):
        if len(one.history) > 1 and one.history[0].image_b64 is not None:
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                f"requests[{i}]: history has {len(one.history)} turns; this service reads one image, "
                "and no reference image",
            )
        if len(one.history) != 1 or one.history[0].image_b64 is None:
            raise _invalid(f"requests[{i}]: history must be one turn with text and image_b64")


def _check(asked: ScoreBody, service: RewardService) -> None:
    """What this service cannot do at all. Raises InvalidRequest."""
    for i, one in enumerate(asked.requests):
        if one.required_rewards != [service.name]:
            raise _invalid(
                f"requests[{i}] asks for {one.required_rewards}; this service is {service.name!r} "
                "(reward-gateway serves several rewards on one URL)"
            )
    check_form(asked)
    for i, one in enumerate(asked.requests):
        if one.scorer_version not in (None, service.info.revision):
            raise _invalid(
                f"requests[{i}] wants scorer_version {one.scorer_version!r}; "
                f"this is {service.info.revision!r}"
            )


def identity(one: RewardRequest, revision: str) -> dict[str, Any]:
    """What the caller attached to an item, with the scorer's version."""
    return {**{field: getattr(one, field) for field in _IDENTITY}, "scorer_version": revision}


def _answer(
    requests: list[RewardRequest], results: list[ItemResult], name: str, revision: str
) -> dict[str, Any]:
    return {
        "results": [
            {name: {"score": result.score.value, **result.score.scores}} if result.score else {}
            for result in results
        ],
        "errors": [
            {name: f"{result.error.reason}: {result.error.message}"} if result.error else {}
            for result in results
        ],
        "identities": [identity(one, revision) for one in requests],
        "protocol_version": PROTOCOL_VERSION,
    }


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
