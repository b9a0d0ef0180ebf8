"""Flow-Factory's remote reward: POST /compute, GET /health."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, Field

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_api.wire.messages import ScoreRequest
from reward_services.chassis.calls import Call
from reward_services.chassis.http.call import http_call
from reward_services.dialects.common import (
    Body,
    dialect_router,
    error_headers,
    health,
    image_of,
    is_temporary,
    json_error,
    read_json,
    request_of,
    scores_of,
)


class ComputeBody(Body):
    """The client says `prompt`, `image` and `kwargs`, its example server `prompts`, `images` and
    `extra`."""

    prompt: list[str] = Field(validation_alias=AliasChoices("prompt", "prompts"))
    image: list[str] | None = Field(default=None, validation_alias=AliasChoices("image", "images"))
    kwargs: dict[str, Any] | None = Field(
        default=None, validation_alias=AliasChoices("kwargs", "extra")
    )
    video: Any = Field(default=None, validation_alias=AliasChoices("video", "videos"))
    condition_images: Any = None
    condition_videos: Any = None


def _errors(error: RewardError, call: Call | None) -> Response:
    """The client shows a failure's text only when the status is 200; other statuses it tries
    three times in a row."""
    if is_temporary(error):
        return json_error(error, call)
    return JSONResponse({"error": str(error)}, 200, error_headers(error, call))


router = dialect_router(_errors)
router.get("/health")(health)


@router.post("/compute")
async def compute(request: Request) -> Response:
    async with http_call(request, "flow-factory") as call:
        body = await call.body()
        message = await call.parse(partial(_read, body), len(body))
        scores = scores_of(await call.score(message))
    return JSONResponse({"rewards": [score.value for score in scores]})


def _read(body: memoryview) -> ScoreRequest:
    asked = read_json(ComputeBody, body)
    for name in ("video", "condition_images", "condition_videos"):
        if getattr(asked, name):
            what = "videos" if "video" in name else "reference images"
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                f"{name}: this service scores images only; it reads no {what}",
            )
    if asked.image is None:
        raise InvalidRequest(Reason.INVALID_REQUEST, "image: there are none to score")
    metadata = (asked.kwargs or {}).get("metadata")
    return request_of([image_of(image) for image in asked.image], asked.prompt, metadata)
