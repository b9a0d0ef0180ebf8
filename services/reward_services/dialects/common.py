"""What the dialects share: reading their bodies, and failing as a whole where they know no errors
of single items."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from reward_api.errors import STATUS, InvalidRequest, Reason, RewardError, error_for
from reward_api.items import make_items
from reward_api.wire import json_text
from reward_api.wire.framing import describe_invalid
from reward_api.wire.json_text import MAX_VALUES
from reward_api.wire.messages import Image, ItemError, ItemScore, ScoreRequest, ScoreResponse
from reward_services.chassis.calls import Call
from reward_services.chassis.http.problems import REQUEST_ID_HEADER
from reward_services.chassis.service import RewardService, State

ErrorAnswer = Callable[[RewardError, Call | None], Response]

_MAX_NAMED_ITEMS = 8


class Body(BaseModel):
    """A JSON body of somebody else's protocol: what it holds beyond our use is not our business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


B = TypeVar("B", bound=BaseModel)


def dialect_router(answer: ErrorAnswer) -> APIRouter:
    """Routes whose RewardErrors are answered by `answer`; they stay out of our own /docs."""

    async def use_error_answer(request: Request) -> None:
        request.state.error_answer = answer

    return APIRouter(dependencies=[Depends(use_error_answer)], include_in_schema=False)


def read_json(model: type[B], body: memoryview, *, max_values: int = MAX_VALUES) -> B:
    """Raises InvalidRequest."""
    try:
        return model.model_validate(json_text.read_json(body, max_values=max_values))
    except ValidationError as error:
        raise InvalidRequest(Reason.INVALID_REQUEST, describe_invalid(error)) from None


def image_of(text: str) -> Image:
    """A base64 string or data URL as an image. One that is neither becomes an empty file: the
    intake makes it that item's IMAGE_DECODE, and its neighbours keep their scores."""
    if text.startswith("data:"):
        _, _, text = text.partition(",")
    try:
        return Image(data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Image(data=b"")


def request_of(images: Sequence[Image], prompts: Any, metadata: Any) -> ScoreRequest:
    """One item per image. Raises InvalidRequest."""
    items = make_items(len(images), prompts, metadata, None)
    return ScoreRequest(
        items=[
            item.model_copy(update={"image": image})
            for item, image in zip(items, images, strict=True)
        ]
    )


def scores_of(response: ScoreResponse) -> list[ItemScore]:
    """The scores of all items, for protocols that have no errors of single items.

    Raises RewardError when an item has none: it names the items, and its reason is that of the
    first one for which sending the batch again would not help.
    """
    failures = {i: result.error for i, result in enumerate(response.results) if result.error}
    if not failures:
        return [result.score for result in response.results if result.score]
    lasting = [error for error in failures.values() if not error.retryable]
    reason = (lasting or list(failures.values()))[0].reason
    named = [f"item {i}: {_text(error)}" for i, error in failures.items()][:_MAX_NAMED_ITEMS]
    more = ["..."] if len(failures) > len(named) else []
    raise error_for(
        reason,
        f"{len(failures)} of {len(response.results)} items have no score; "
        + "; ".join([*named, *more]),
    )


def sub_score_lists(scores: list[ItemScore]) -> dict[str, list[float]]:
    """The sub-scores that every item has, each a list over the items."""
    names = [name for name in scores[0].scores if all(name in score.scores for score in scores)]
    return {name: [score.scores[name] for score in scores] for name in names}


def json_error(error: RewardError, call: Call | None) -> Response:
    """{"error": ..., "detail": ...}: the member that OIP clients read, and the one that FastAPI
    servers answer with."""
    body = {"error": str(error), "detail": str(error)}
    return JSONResponse(body, error.http_status, error_headers(error, call))


def error_headers(error: RewardError, call: Call | None) -> dict[str, str]:
    made = {REQUEST_ID_HEADER: call.request_id} if call and call.request_id else {}
    if error.retry_after_s is not None:
        made["Retry-After"] = str(math.ceil(error.retry_after_s))
    return made


def is_temporary(error: RewardError) -> bool:
    """Whether the same request can succeed when it is sent again, as often as it takes."""
    return error.retryable and STATUS[error.reason].http != 500


async def health(request: Request) -> Response:
    """GET /health of Flow-Factory and UniRL: 200 when the service takes work."""
    service: RewardService = request.app.state.service
    is_ready = service.state is State.READY
    return JSONResponse(
        {
            "status": "ok" if is_ready else "unavailable",
            "rewards": {service.name: str(service.state)},
        },
        200 if is_ready else 503,
    )


def _text(error: ItemError) -> str:
    return f"{error.reason}: {error.message}"
