"""The transport of a URL."""

from __future__ import annotations

from reward_api.transport.base import Credentials, Target, Transport


def open_transport(target: Target, credentials: Credentials) -> Transport:
    """A transport that connects on first use."""
    if target.is_grpc:
        from reward_api.transport.grpc import GrpcTransport  # gRPC takes 0.1 s to import

        return GrpcTransport(target, credentials)
    from reward_api.transport.http import HttpTransport

    return HttpTransport(target, credentials)
