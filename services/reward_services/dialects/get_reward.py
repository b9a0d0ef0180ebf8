"""OpenRLHF's and slime's remote reward: POST /get_reward. Both speak of text; here an image stands
in its place as a base64 string or data URL."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.json_text import values_of
from reward_api.wire.messages import ItemScore, ScoreRequest
from reward_services.chassis.http.call import http_call
from reward_services.dialects.common import (
    Body,
    dialect_router,
    image_of,
    json_error,
    read_json,
    request_of,
    scores_of,
    sub_score_lists,
)


class GetRewardBody(Body):
    """OpenRLHF sends lists (`query`, `prompts`, `labels`), slime one sample (`prompt`, `response`,
    `label`). `images`, when given, takes the place of `query`."""

    query: list[str] | None = None
    prompts: list[str] | None = None
    labels: list[Any] | None = None
    images: list[str] | None = None
    prompt: str | list[dict[str, Any]] = ""
    response: str | None = None
    label: Any = None

    @property
    def is_single(self) -> bool:
        return self.response is not None


router = dialect_router(json_error)


@router.post("/get_reward")
async def get_reward(request: Request) -> Response:
    async with http_call(request, "get-reward") as call:
        body = await call.body()
        asked, message = await call.parse(partial(_read, body), len(body))
        scores = scores_of(await call.score(message))
    return JSONResponse(scores[0].value if asked.is_single else _lists(scores))


def _lists(scores: list[ItemScore]) -> dict[str, Any]:
    values = [score.value for score in scores]
    return {"rewards": values, "scores": values, "extra_logs": sub_score_lists(scores)}


def _read(body: memoryview) -> tuple[GetRewardBody, ScoreRequest]:
    asked = read_json(GetRewardBody, body)
    if asked.response is not None:
        images, prompts, labels = [asked.response], [prompt_text(asked.prompt)], [asked.label]
    else:
        given = asked.images if asked.images is not None else asked.query
        if given is None:
            raise InvalidRequest(
                Reason.INVALID_REQUEST, "neither query (or images) nor response is there"
            )
        images, prompts = given, asked.prompts or [""] * len(given)
        labels = asked.labels or [None] * len(given)
    metadata = [_metadata(label) for label in labels]
    return asked, request_of([image_of(image) for image in images], prompts, metadata)


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt, or the texts of a conversation (slime sends what the dataset has)."""
    if isinstance(prompt, str):
        return prompt
    texts: list[str] = []
    for message in prompt:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
    return "\n".join(texts)


def _metadata(label: Any) -> dict[str, Any] | None:
    """A label that is a JSON object is the item's metadata; other labels are for text rewards."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = values_of(label.encode())
        except InvalidRequest as error:
            raise InvalidRequest(
                Reason.SCHEMA, f"a label starts with {{ but is no JSON: {error.message}"
            ) from None
    return label if isinstance(label, dict) else None
