"""What a failed call looks like on the wire, back to the exception it stands for.

A service of this contract names the reason itself (`reason` in application/problem+json, the gRPC
trailer `reward-reason`); the tables below are for what stands between: proxies, gRPC's own core.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from reward_api.errors import Reason, RewardError, error_for
from reward_api.wire.messages import Problem

REASON_TRAILER = "reward-reason"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

_BY_STATUS = {
    401: Reason.AUTH,
    403: Reason.AUTH,
    404: Reason.MODEL_NOT_FOUND,
    405: Reason.UNSUPPORTED,
    408: Reason.DEADLINE,
    413: Reason.REQUEST_TOO_LARGE,
    415: Reason.UNSUPPORTED,
    429: Reason.QUEUE_FULL,
    502: Reason.CONNECTION,
    503: Reason.CONNECTION,
    504: Reason.DEADLINE,
}
_BY_CODE = {
    1: Reason.CONNECTION,  # CANCELLED by the far side: a server that stops
    3: Reason.INVALID_REQUEST,
    4: Reason.DEADLINE,
    5: Reason.MODEL_NOT_FOUND,
    7: Reason.AUTH,
    12: Reason.UNSUPPORTED,
    14: Reason.CONNECTION,
    16: Reason.AUTH,
}
_RESOURCE_EXHAUSTED = 8


def error_of_response(
    status: int, headers: Mapping[str, str], body: bytes, where: str
) -> RewardError:
    """The error of an HTTP answer. ``headers`` are lower-case; ``where`` names the service."""
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        other = Reason.INTERNAL if status >= 500 else Reason.INVALID_REQUEST
        return error_for(
            _BY_STATUS.get(status, other),
            f"{where} answered {status}: {_excerpt(body)}",
            retry_after_s=_retry_after_s(headers),
        )
    milliseconds = problem.retry_after_ms
    return error_for(
        problem.reason,
        problem.detail,
        retry_after_s=_retry_after_s(headers) if milliseconds is None else milliseconds / 1000,
    )


def error_of_rpc(
    code: int, details: str, trailers: Iterable[tuple[str, str | bytes]], where: str
) -> RewardError:
    """The error of a gRPC status. A negative pushback forbids a retry: it becomes infinite."""
    named = {key: value if isinstance(value, str) else "" for key, value in trailers}
    pushback_ms = _number(named.get(PUSHBACK_TRAILER))
    retry_after_s = None
    if pushback_ms is not None:
        retry_after_s = pushback_ms / 1000 if pushback_ms >= 0 else math.inf
    reason = named.get(REASON_TRAILER)
    if reason is not None:
        known = Reason(reason) if reason in frozenset(Reason) else Reason.INTERNAL
        return error_for(known, details, retry_after_s=retry_after_s)
    if code == _RESOURCE_EXHAUSTED:
        # gRPC's core says this of an oversize message; an overloaded service would name a reason.
        guess = Reason.REQUEST_TOO_LARGE if retry_after_s is None else Reason.QUEUE_FULL
    else:
        guess = _BY_CODE.get(code, Reason.INTERNAL)
    return error_for(guess, f"{where}: {details}", retry_after_s=retry_after_s)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    seconds = _number(headers.get("retry-after"))
    return seconds if seconds is not None and seconds >= 0 else None


def _number(text: str | None) -> float | None:
    # An HTTP date is not understood, and counts as no hint.
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return text or "(empty body)"
