"""The HTTP front: /v1/score, /v1/score_gradient, /v1/metadata, health, metrics, /docs and the page at /."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_api.wire.framing import (
    CONTENT_TYPE,
    LENGTH_HEADER,
    decode_json,
    decode_request,
    encode_response,
)
from reward_api.wire.messages import (
    GradientRequest,
    Problem,
    RewardMetadata,
    ScoreRequest,
    ScoreResponse,
)
from reward_services import __version__
from reward_services.chassis.http.body import integer_header
from reward_services.chassis.http.call import (
    PRIORITY_HEADER,
    TIMEOUT_HEADER,
    HttpCall,
    http_call,
)
from reward_services.chassis.http.problems import (
    REQUEST_ID_HEADER,
    is_foreign,
    plain_problem,
    problem_response,
)
from reward_services.chassis.http.reference import HEADERS, reference_page
from reward_services.chassis.idempotency import KEY_HEADER
from reward_services.chassis.page.route import router as page_router
from reward_services.chassis.service import RewardService, State

_JSON = "application/json"
_PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "malformed request"),
        (401, "missing or wrong token"),
        (404, "another model was asked for"),
        (413, "request too large: send fewer items"),
        (415, "neither JSON nor the binary form"),
        (422, "images and items do not match"),
        (429, "queue full or deadline unreachable: wait for Retry-After"),
        (503, "loading, draining or device lost"),
        (504, "deadline passed"),
    )
}

_REQUEST_DOCUMENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _JSON: {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
            CONTENT_TYPE: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": f"The JSON form, of the length given by the header "
                    f"{LENGTH_HEADER}, with `binary_data_size` in place of each `data`; then "
                    "the bytes of the images in their order.",
                }
            },
        },
    },
    "parameters": [
        {"name": name, "in": "header", "description": text, "schema": {"type": kind}}
        for name, kind, text in (
            (TIMEOUT_HEADER, "integer", "deadline, milliseconds from now"),
            (PRIORITY_HEADER, "integer", "1 (first) to 3 (last); default 2"),
            (REQUEST_ID_HEADER, "string", "echoed in the answer and in the logs"),
            (KEY_HEADER, "string", "a retry with the same key gets the same answer"),
            (LENGTH_HEADER, "integer", "binary form: bytes of JSON at the start"),
        )
    ],
}

router = APIRouter()


def create_app(service: RewardService, dialects: Mapping[str, APIRouter]) -> FastAPI:
    """`dialects`: the routes of those that the settings may name."""
    app = FastAPI(
        title=f"{service.name} reward",
        version=__version__,
        summary="Scores images for prompts.",
        description="The same messages travel over gRPC (package reward.v1).",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    for name in service.settings.enabled_dialects:
        app.include_router(dialects[name])
    if service.settings.page:
        app.include_router(page_router)
    app.add_exception_handler(RewardError, _on_reward_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    _document_score_request(app)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference_page(app.openapi()), headers=HEADERS)

    return app


@router.post(
    "/v1/score",
    response_model=ScoreResponse,
    response_model_exclude_none=True,
    responses=_PROBLEM_RESPONSES,
    openapi_extra=_REQUEST_DOCUMENT,
)
async def score(request: Request) -> Response:
    """Scores a batch: one result per item, in order, each a score or a typed error."""
    async with http_call(request, "http") as call:
        response = await call.score(await _read_request(call))
    return Response(
        response.model_dump_json(exclude_none=True),
        media_type=_JSON,
        headers=_response_headers(response),
    )


@router.post(
    "/v1/score_gradient",
    response_model=ScoreResponse,
    response_model_exclude_none=True,
    responses=_PROBLEM_RESPONSES,
    openapi_extra=_REQUEST_DOCUMENT,
)
async def score_gradient(request: Request) -> Response:
    """Scores a batch and answers every score's gradient with respect to the pixels, in the form of the
    request: base64 in JSON, or bytes behind it. 415 from a reward without gradients."""
    async with http_call(request, "http") as call:
        message = GradientRequest(**dict(await _read_request(call)))
        response = await call.score(message)
    headers = _response_headers(response)
    if LENGTH_HEADER not in request.headers:
        return Response(response.model_dump_json(exclude_none=True), 200, headers, _JSON)
    form, body = await asyncio.to_thread(encode_response, response)
    return Response(body, 200, headers | form)


def _response_headers(response: ScoreResponse) -> dict[str, str]:
    timing = response.timing
    return {
        REQUEST_ID_HEADER: response.request_id,
        "Server-Timing": f"queue;dur={timing.queue_ms:.2f}, decode;dur={timing.decode_ms:.2f}, "
        f"inference;dur={timing.inference_ms:.2f}, total;dur={timing.total_ms:.2f}",
    }


@router.get("/v1/metadata", responses={503: _PROBLEM_RESPONSES[503]})
async def metadata(request: Request) -> RewardMetadata:
    """What this reward measures, its ranges and the service's limits."""
    return request.app.state.service.metadata()


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    responses={503: {"description": "reason: loading, warming, waiting, draining, failed"}},
)
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """200 when the service takes work."""
    state: State = request.app.state.service.state
    if state is State.READY:
        return {"status": "ready"}
    response.status_code = 503
    return {"status": "not ready", "reason": state}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(
        request.app.state.service.metrics.exposition(),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


async def _read_request(call: HttpCall) -> ScoreRequest:
    headers = call.request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (_JSON, CONTENT_TYPE):
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            f"Content-Type must be {_JSON} or {CONTENT_TYPE}, not {media_type!r}",
        )
    header_length = integer_header(headers, LENGTH_HEADER, minimum=0)
    body = await call.body()
    if media_type == _JSON:
        decode, parsed_bytes = partial(decode_json, body), len(body)
    elif header_length is not None:
        decode, parsed_bytes = partial(decode_request, body, header_length), header_length
    else:
        raise InvalidRequest(Reason.INVALID_REQUEST, f"{CONTENT_TYPE} needs {LENGTH_HEADER}")
    return await call.parse(decode, parsed_bytes)


class ScoreFirst:
    """The ASGI application in front of FastAPI's: calls of /v1/score go straight to their handler.

    What FastAPI does around it (routing, dependencies, an exit stack, telemetry) is of no use to a
    handler that takes the bare request, and costs as much CPU as scoring a small batch does.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/v1/score"):
            return await self._app(scope, receive, send)
        scope["app"] = self._app
        request = Request(scope, receive)
        try:
            response = await score(request)
        except RewardError as error:
            response = await _on_reward_error(request, error)
        await response(scope, receive, send)


async def _on_reward_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RewardError)
    answer = getattr(request.state, "error_answer", problem_response)  # a dialect has its own
    return answer(error, getattr(request.state, "call", None))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return plain_problem(
        error.status_code,
        f"{error.detail}: {request.method} {request.url.path[:200]}",
        error.headers,
        with_error=is_foreign(request.url.path),
    )


def _document_score_request(app: FastAPI) -> None:
    """The handler reads the body itself, so its schema is added by hand."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        if "ScoreRequest" not in schemas:
            request = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(request.pop("$defs"))
            schemas["ScoreRequest"] = request
        return document

    app.openapi = openapi
