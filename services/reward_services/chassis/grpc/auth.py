"""Token and TLS of the gRPC port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from reward_api.errors import AuthenticationFailed
from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.settings import ServiceSettings

_OPEN_GRPC_SERVICE = "/grpc.health.v1.Health/"


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
