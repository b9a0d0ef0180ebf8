"""The gRPC form of the contract, on grpc.aio."""

from __future__ import annotations

import os
from typing import Any

import grpc
import grpc.aio

from reward_api.errors import Reason, RewardError, ServerFault, Unavailable
from reward_api.transport.base import Credentials, Target
from reward_api.wire import convert
from reward_api.wire.messages import (
    GradientRequest,
    RewardMetadata,
    ScoreRequest,
    ScoreResponse,
)
from reward_api.wire.v1 import reward_pb2 as pb
from reward_api.wire.wire_errors import error_of_rpc

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Retries are the pool's: gRPC's own end at 256 KiB and know one replica only.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # A replica that restarts is found again within seconds; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Connections belong to this channel alone, so that closing it closes them.
    ("grpc.use_local_subchannel_pool", 1),
)
# grpc.health.v1 without its package: an empty request, and status = SERVING.
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"

_pid_of_first_use: int | None = None


def _refuse_forked_process() -> None:
    """Calls would hang until their deadline: gRPC's threads do not exist in a forked child."""
    global _pid_of_first_use
    if _pid_of_first_use not in (None, os.getpid()):
        raise RuntimeError(
            "gRPC does not work in a process forked from one that has used it: use http:// URLs, "
            'or start processes with the method "spawn"'
        )
    _pid_of_first_use = os.getpid()


class GrpcTransport:
    """One channel; it belongs to the event loop that first uses it."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        _refuse_forked_process()
        self._target = target
        self._metadata = tuple(credentials.headers.items())
        options = [*_OPTIONS, ("grpc.default_authority", target.authority)]
        if target.is_tls:
            if target.address:
                options.append(("grpc.ssl_target_name_override", target.host))
            self._channel = grpc.aio.secure_channel(
                target.connect_authority, _channel_credentials(credentials), options
            )
        else:
            self._channel = grpc.aio.insecure_channel(target.connect_authority, options)
        service = "/reward.v1.RewardService/"
        self._score = self._channel.unary_unary(
            service + "Score", convert.serialize_request, pb.ScoreResponse.FromString
        )
        self._score_gradient = self._channel.unary_unary(
            service + "ScoreGradient", convert.serialize_request, pb.ScoreResponse.FromString
        )
        self._get_metadata = self._channel.unary_unary(
            service + "GetMetadata",
            pb.GetMetadataRequest.SerializeToString,
            pb.RewardMetadata.FromString,
        )
        self._check = self._channel.unary_unary(_HEALTH_CHECK)

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreResponse:
        metadata = self._metadata
        if request.request_id:
            metadata = (
                *metadata,
                ("x-request-id", request.request_id),
                ("idempotency-key", request.request_id),
            )
        method = self._score_gradient if isinstance(request, GradientRequest) else self._score
        message = await self._call(method, request, timeout_s, metadata)
        try:
            return convert.response_from_proto(message)
        except ValueError as error:
            raise ServerFault(Reason.INTERNAL, f"{self._target}: {error}") from None

    async def metadata(self, *, timeout_s: float) -> RewardMetadata:
        message = await self._call(
            self._get_metadata, pb.GetMetadataRequest(), timeout_s, self._metadata
        )
        return convert.metadata_from_proto(message)

    async def ready(self, *, timeout_s: float) -> None:
        answer = await self._call(self._check, b"", timeout_s, self._metadata)
        if answer != _SERVING:
            raise Unavailable(Reason.LOADING, f"{self._target} is not ready")

    async def close(self) -> None:
        await self._channel.close()

    async def _call(
        self, method: Any, request: Any, timeout_s: float, metadata: tuple[tuple[str, str], ...]
    ) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _reward_error(error, str(self._target)) from None


def _reward_error(error: grpc.aio.AioRpcError, where: str) -> RewardError:
    return error_of_rpc(
        error.code().value[0],
        error.details() or "",
        [(key, value) for key, value in error.trailing_metadata() or ()],
        where,
    )


def _channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    def read(path: Any) -> bytes | None:
        if path is None:
            return None
        with open(path, "rb") as file:
            return file.read()

    return grpc.ssl_channel_credentials(
        root_certificates=read(credentials.ca_file),
        private_key=read(credentials.key_file),
        certificate_chain=read(credentials.cert_file),
    )
