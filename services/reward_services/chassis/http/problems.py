"""Errors as application/problem+json (RFC 9457)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from reward_api.errors import RewardError
from reward_api.wire.messages import Problem
from reward_services.chassis.calls import Call

REQUEST_ID_HEADER = "X-Request-Id"
_PROBLEM_JSON = "application/problem+json"
# First parts of the dialects' paths, also of those that are not served.
_FOREIGN = frozenset({"v2", "compute", "score", "rewards", "health", "get_reward", "api"})


def is_foreign(path: str) -> bool:
    """Whether another protocol's client asks, which reads the member `error`."""
    return path.partition("/")[2].partition("/")[0] in _FOREIGN


def problem_response(
    error: RewardError, call: Call | None = None, *, with_error: bool = False
) -> Response:
    """application/problem+json with Retry-After where waiting helps; `with_error` repeats the text
    as the member `error`."""
    status = error.http_status
    request_id = call.request_id if call else ""
    retry_after_ms = None if error.retry_after_s is None else math.ceil(error.retry_after_s * 1000)
    body = Problem(
        title=_title(status),
        status=status,
        detail=error.message,
        reason=error.reason,
        request_id=request_id,
        retry_after_ms=retry_after_ms,
        error=str(error) if with_error else None,
    )
    headers = {REQUEST_ID_HEADER: request_id} if request_id else {}
    if retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_ms / 1000))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body.model_dump_json(exclude_none=True), status, headers, _PROBLEM_JSON)


def plain_problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, *, with_error: bool = False
) -> Response:
    """For what no Reason names: no such route, wrong method."""
    body = {"type": "about:blank", "title": _title(status), "status": status, "detail": detail}
    if with_error:
        body["error"] = detail
    return Response(json.dumps(body), status, headers, _PROBLEM_JSON)


def _title(status: int) -> str:
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
