"""One call from arrival to answer, whatever its protocol: its id, its log line, its metrics, and
the promise that nothing but a RewardError (or a cancellation) leaves it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from types import TracebackType
from typing import Self

from reward_api.errors import InvalidRequest, Reason, RewardError, ServerFault
from reward_api.wire.messages import ScoreResponse
from reward_services.chassis.metrics import Metrics

logger = logging.getLogger(__name__)

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")

_GRPC_NAMES = {
    0: "OK",
    1: "CANCELLED",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    8: "RESOURCE_EXHAUSTED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}
# The others are forms of HTTP.
_GRPC_PROTOCOLS = frozenset({"grpc", "oip-grpc", "in-process"})


class OpenCalls:
    """How many calls are being worked on; `idle` is set while there are none."""

    def __init__(self) -> None:
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, change: int) -> None:
        self.count += change
        if self.count:
            self.idle.clear()
        else:
            self.idle.set()


class Call:
    """Context of one Score call. Set `response` before leaving when there is one."""

    def __init__(self, metrics: Metrics, open_calls: OpenCalls, protocol: str) -> None:
        self._metrics = metrics
        self._open_calls = open_calls
        self._protocol = protocol
        self._started = time.monotonic()
        self.request_id = ""
        self.idempotency_key = ""
        self.num_items = 0
        self.response: ScoreResponse | None = None

    def __enter__(self) -> Self:
        self._open_calls.add(1)
        return self

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def name(self, given: str) -> str:
        """The caller's request id, or a new one. Raises InvalidRequest for one that is not fit for
        headers and logs."""
        if given and not _SAFE_ID.fullmatch(given):
            raise InvalidRequest(
                Reason.INVALID_REQUEST,
                "the request id must be 1 to 128 printable ASCII characters without spaces",
            )
        self.request_id = given or uuid.uuid4().hex
        return self.request_id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open_calls.add(-1)
        if not self.request_id:
            self.name("")
        if error is None:
            self._finish("OK", "200", None, "")
        elif isinstance(error, RewardError):
            self._finish(*_codes(error), error.reason, error.message)
        elif isinstance(error, asyncio.CancelledError):
            self._finish("CANCELLED", "499", Reason.CANCELLED, "the caller went away")
        elif isinstance(error, Exception):
            logger.error("internal error", exc_info=error, extra={"request_id": self.request_id})
            self._finish("INTERNAL", "500", Reason.INTERNAL, type(error).__name__)
            raise ServerFault(
                Reason.INTERNAL, f"internal error; the log of request {self.request_id} tells more"
            ) from error

    def _finish(self, grpc_code: str, http_code: str, reason: Reason | None, message: str) -> None:
        seconds = self.elapsed_s
        code = grpc_code if self._protocol in _GRPC_PROTOCOLS else http_code
        self._metrics.observe_call(self._protocol, code, seconds, reason)
        level = logging.INFO if reason is None else logging.WARNING
        if logger.isEnabledFor(level):
            logger.log(level, message or "scored", extra=self._fields(code, seconds, reason))

    def _fields(self, code: str, seconds: float, reason: Reason | None) -> dict[str, object]:
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "protocol": self._protocol,
            "code": code,
            "items": self.num_items,
            "total_ms": round(seconds * 1000, 2),
        }
        if reason is not None:
            fields["reason"] = str(reason)
        if self.response is not None:
            fields["item_errors"] = sum(r.error is not None for r in self.response.results)
            fields["queue_ms"] = round(self.response.timing.queue_ms, 2)
            fields["inference_ms"] = round(self.response.timing.inference_ms, 2)
        return fields


def _codes(error: RewardError) -> tuple[str, str]:
    return _GRPC_NAMES.get(error.grpc_code, "UNKNOWN"), str(error.http_status)
