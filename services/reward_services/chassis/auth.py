"""Who may call: a bearer token and TLS, the same for both ports."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_api.errors import AuthenticationFailed, Reason
from reward_services.chassis.problems import problem_response
from reward_services.chassis.settings import ServiceSettings

# Probes carry no token and learn nothing but "alive" and "ready".
_OPEN_PATHS = frozenset({"/livez", "/readyz"})
# The page is the same for everybody; what it calls asks for the token.
_PAGE_PATH, _PAGE_METHODS = "/", frozenset({"GET", "HEAD"})
_OPEN_GRPC_SERVICE = "/grpc.health.v1.Health/"


class TokenCheck:
    def __init__(self, token: str) -> None:
        self._expected = b"Bearer " + token.encode("ascii")

    def failure(self, authorization: bytes) -> AuthenticationFailed | None:
        """None when the Authorization header is right; compared in constant time."""
        if hmac.compare_digest(authorization, self._expected):
            return None
        what = "wrong token" if authorization else "no token"
        return AuthenticationFailed(
            Reason.AUTH, f"{what}: send the header 'Authorization: Bearer <token>'"
        )


class HttpAuth:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, check: TokenCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            error = self._check.failure(given)
            if error is not None:
                await problem_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return path in _OPEN_PATHS or (path == _PAGE_PATH and scope["method"] in _PAGE_METHODS)


class GrpcAuth(grpc.aio.ServerInterceptor):
    def __init__(self, check: TokenCheck) -> None:
        self._check = check

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if not handler_call_details.method.startswith(_OPEN_GRPC_SERVICE):
            metadata = handler_call_details.invocation_metadata or ()
            given = next((v for k, v in metadata if k == "authorization"), b"")
            error = self._check.failure(given.encode() if isinstance(given, str) else given)
            if error is not None:
                return _refusing_handler(error)
        return await continuation(handler_call_details)


def _refusing_handler(error: AuthenticationFailed) -> grpc.RpcMethodHandler:
    async def refuse(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, error.message, (("reward-reason", error.reason),)
        )
        raise AssertionError("abort returned")

    return grpc.unary_unary_rpc_method_handler(refuse)


def uvicorn_tls(settings: ServiceSettings) -> dict[str, Any]:
    if settings.tls_cert_file is None:
        return {}
    client_ca = settings.tls_client_ca_file
    return {
        "ssl_certfile": str(settings.tls_cert_file),
        "ssl_keyfile": str(settings.tls_key_file),
        "ssl_ca_certs": str(client_ca) if client_ca else None,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE,
    }


def grpc_tls(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """None: plain text. Raises OSError for unreadable files."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    client_ca = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [(settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())],
        root_certificates=client_ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )
