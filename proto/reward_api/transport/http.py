"""The HTTP form of the contract: binary-form POST /v1/score, GET /v1/metadata and /readyz."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from reward_api.errors import (
    AuthenticationFailed,
    InvalidRequest,
    Reason,
    RewardError,
    ServerFault,
    Unavailable,
)
from reward_api.transport.base import Credentials, Target
from reward_api.transport.http_connection import Connection, Response, connect
from reward_api.wire.framing import (
    LENGTH_HEADER,
    decode_response,
    describe_invalid,
    encode_request,
)
from reward_api.wire.messages import (
    GradientRequest,
    Reply,
    RewardMetadata,
    ScoreRequest,
    ScoreResponse,
)
from reward_api.wire.wire_errors import error_of_response

_CONNECT_TIMEOUT_S = 5.0

_Reply = TypeVar("_Reply", bound=Reply)


class HttpTransport:
    """Keeps idle connections and opens one per concurrent call. It may be used from one event loop
    after another, but not from two at a time."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._target = target
        self._headers = {"host": target.authority, "accept": "application/json"}
        self._headers |= credentials.headers
        self._tls = credentials.ssl_context() if target.is_tls else None
        self._idle: list[Connection] = []
        self._is_closed = False

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreResponse:
        headers, parts = encode_request(request)
        headers["x-reward-timeout-ms"] = str(max(1, int(timeout_s * 1000)))
        if request.request_id:
            headers["x-request-id"] = request.request_id
            headers["idempotency-key"] = request.request_id
        if request.priority:
            headers["x-reward-priority"] = str(request.priority)
        if not isinstance(request, GradientRequest):
            response = await self._call("POST", "/v1/score", headers, parts)
            return self._parse(ScoreResponse, response)
        response = await self._call("POST", "/v1/score_gradient", headers, parts)
        return self._parse_gradients(response)

    async def metadata(self, *, timeout_s: float) -> RewardMetadata:
        response = await self._call("GET", "/v1/metadata")
        return self._parse(RewardMetadata, response)

    async def ready(self, *, timeout_s: float) -> None:
        response = await self._exchange("GET", "/readyz")
        if response.status != 200:
            raise _not_ready(response, str(self._target))

    async def close(self) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    async def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        parts: Sequence[bytes | memoryview] = (),
    ) -> Response:
        response = await self._exchange(method, path, headers, parts)
        if response.status != 200:
            raise error_of_response(
                response.status, response.headers, response.body, str(self._target)
            )
        return response

    async def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        parts: Sequence[bytes | memoryview] = (),
    ) -> Response:
        try:
            connection = await self._connection()
            try:
                response = await connection.exchange(
                    method,
                    self._target.prefix + path,
                    {**self._headers, **(headers or {})},
                    parts,
                )
            except BaseException:
                connection.close()
                raise
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationFailed(Reason.AUTH, f"{self._target}: {error}") from error
        except OSError as error:
            raise Unavailable(Reason.CONNECTION, f"{self._target}: {error}") from error
        self._release(connection)
        return response

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        target = self._target
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                return Connection(
                    await connect(
                        target.address or target.host, target.port, self._tls, target.host
                    )
                )
        except TimeoutError:
            raise ConnectionError(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from None

    def _release(self, connection: Connection) -> None:
        if connection.is_idle() and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()

    def _parse(self, kind: type[_Reply], response: Response) -> _Reply:
        try:
            return kind.model_validate_json(response.body)
        except ValidationError as error:
            raise ServerFault(
                Reason.INTERNAL,
                f"{self._target} is not a reward service: {describe_invalid(error)}",
            ) from None

    def _parse_gradients(self, response: Response) -> ScoreResponse:
        length = response.headers.get(LENGTH_HEADER, "")
        try:
            return decode_response(response.body, int(length))
        except (ValidationError, InvalidRequest, ValueError) as error:
            raise ServerFault(
                Reason.INTERNAL, f"{self._target} sent gradients that cannot be read: {error}"
            ) from None


def _not_ready(response: Response, where: str) -> RewardError:
    try:
        state = json.loads(response.body)["reason"]
    except (ValueError, KeyError, TypeError):
        return error_of_response(response.status, response.headers, response.body, where)
    reasons = {"draining": Reason.DRAINING, "failed": Reason.DEVICE_FAILED}
    return Unavailable(reasons.get(state, Reason.LOADING), f"{where} is not ready: {state}")
