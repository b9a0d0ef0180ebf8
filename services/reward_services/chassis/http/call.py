"""What every way of scoring over HTTP has in common: the call's id, its deadline, the bounds, the
body, and the caller that goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request

from reward_api.errors import DeadlineExceeded, InvalidRequest, Reason
from reward_api.wire.messages import ScoreRequest, ScoreResponse
from reward_services.chassis.calls import Call
from reward_services.chassis.http.body import (
    cancelled_on_disconnect,
    expected_bytes,
    integer_header,
    read_body,
)
from reward_services.chassis.http.problems import REQUEST_ID_HEADER
from reward_services.chassis.idempotency import KEY_HEADER
from reward_services.chassis.service import RewardService

TIMEOUT_HEADER = "X-Reward-Timeout-Ms"
PRIORITY_HEADER = "X-Reward-Priority"

# Parsing more than this happens in the pool: the event loop also answers health checks.
_INLINE_PARSE_BYTES = 16 * 1024

T = TypeVar("T")


@dataclass
class HttpCall:
    """One call that is being answered; made by `http_call`."""

    service: RewardService
    request: Request
    call: Call
    timeout_s: float
    priority: int | None

    async def body(self) -> memoryview:
        """Raises Unavailable when no work is taken, InvalidRequest (REQUEST_TOO_LARGE),
        DeadlineExceeded."""
        self.service.check_ready()
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await read_body(self.request, self.service.settings.max_request_bytes)
        except TimeoutError:
            raise DeadlineExceeded(
                Reason.DEADLINE, f"the body did not arrive within {self.timeout_s:.3g} s"
            ) from None
        self.service.metrics.received_bytes.inc(len(body))
        return body

    async def parse(self, decode: Callable[[], T], num_bytes: int) -> T:
        """What `decode` returns; in the pool when there is much to parse."""
        if num_bytes <= _INLINE_PARSE_BYTES:
            return decode()
        return await asyncio.get_running_loop().run_in_executor(self.service.pool, decode)

    async def score(self, message: ScoreRequest) -> ScoreResponse:
        """RewardService.score within what is left of the deadline, while the caller is there."""
        if self.priority is not None:
            message = message.model_copy(update={"priority": self.priority})
        with cancelled_on_disconnect(self.request.scope):
            return await self.service.score(
                message, timeout_s=self.timeout_s - self.call.elapsed_s, call=self.call
            )


def check_encoding(headers: Headers) -> None:
    """Raises InvalidRequest (UNSUPPORTED) for a compressed body."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            f"Content-Encoding is {encoding[:32]!r}, and compressed bodies are not read: send the "
            "body as it is, without this header",
        )


@contextlib.asynccontextmanager
async def http_call(request: Request, protocol: str) -> AsyncIterator[HttpCall]:
    """Counts and logs the call under `protocol`, holds its bytes, and reads the headers that all
    calls share. Nothing but a RewardError leaves it."""
    service: RewardService = request.app.state.service
    headers = request.headers
    with service.call(protocol) as call:
        request.state.call = call
        call.name(headers.get(REQUEST_ID_HEADER, ""))
        call.idempotency_key = headers.get(KEY_HEADER, "")
        check_encoding(headers)
        timeout_ms = integer_header(headers, TIMEOUT_HEADER, minimum=1)
        timeout_s = service.timeout_s(None if timeout_ms is None else timeout_ms / 1000)
        priority = integer_header(headers, PRIORITY_HEADER, minimum=0)
        limit = service.settings.max_request_bytes
        with service.admission.hold_bytes(expected_bytes(headers, limit)):
            yield HttpCall(service, request, call, timeout_s, priority)
