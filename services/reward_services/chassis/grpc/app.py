"""The gRPC front: reward.v1.RewardService, grpc.health.v1 and, when asked for, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health, health_pb2

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_api.wire.convert import (
    REQUEST_FIELDS,
    metadata_to_proto,
    request_from_proto,
    response_to_proto,
    split_request,
)
from reward_api.wire.messages import GradientRequest, ScoreRequest
from reward_api.wire.proto_fields import check_fields
from reward_api.wire.v1 import reward_pb2
from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.grpc.auth import GrpcAuth, grpc_tls
from reward_services.chassis.grpc.call import abort, given_key, given_request_id
from reward_services.chassis.grpc.library import health_handler
from reward_services.chassis.grpc.reflection import DescribedHandler, add_reflection
from reward_services.chassis.ports import bind
from reward_services.chassis.service import RewardService

SERVICE_NAME = "reward.v1.RewardService"

_INLINE_PARSE_BYTES = 16 * 1024
_FRAMING_BYTES = 64 * 1024


class RewardServicer:
    """Takes messages as bytes: gRPC would parse them on the event loop, however large."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def score(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return await self._answer(data, context)

    async def score_gradient(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return await self._answer(data, context, gradient=True)

    async def _answer(
        self, data: bytes, context: grpc.aio.ServicerContext, *, gradient: bool = False
    ) -> bytes:
        service = self._service
        service.metrics.received_bytes.inc(len(data))
        try:
            with service.call("grpc") as call, service.admission.hold_bytes(len(data)):
                call.name(given_request_id(context))
                call.idempotency_key = given_key(context)
                timeout_s = service.timeout_s(context.time_remaining())
                request = await self._parse(data)
                if gradient:
                    request = GradientRequest(**dict(request))
                del data
                response = await service.score(
                    request, timeout_s=timeout_s - call.elapsed_s, call=call
                )
                return response_to_proto(response).SerializeToString()
        except RewardError as error:
            await abort(context, error)

    async def get_metadata(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return metadata_to_proto(self._service.metadata()).SerializeToString()
        except RewardError as error:
            await abort(context, error)

    async def _parse(self, data: bytes) -> ScoreRequest:
        rest, packed = split_request(data)
        if len(rest) <= _INLINE_PARSE_BYTES:
            request = _parse(rest)
        else:
            loop = asyncio.get_running_loop()
            request = await loop.run_in_executor(self._service.pool, _parse, rest)
        return request if packed is None else request.model_copy(update={"packed_images": packed})

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Score": grpc.unary_unary_rpc_method_handler(self.score),
                "ScoreGradient": grpc.unary_unary_rpc_method_handler(self.score_gradient),
                "GetMetadata": grpc.unary_unary_rpc_method_handler(self.get_metadata),
            },
        )


def _parse(data: bytes) -> ScoreRequest:
    check_fields(data, REQUEST_FIELDS)
    try:
        message = reward_pb2.ScoreRequest.FromString(data)
    except Exception as error:  # DecodeError; its module differs between protobuf versions
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"not a reward.v1.ScoreRequest: {error}"
        ) from None
    return request_from_proto(message)


Dialects = Mapping[str, Callable[[RewardService], grpc.ServiceRpcHandler]]


class GrpcFront:
    """The gRPC server of one service."""

    def __init__(
        self, service: RewardService, check: TokenCheck | None, dialects: Dialects
    ) -> None:
        settings = service.settings
        self._settings = settings
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._server = grpc.aio.server(
            interceptors=[GrpcAuth(check)] if check else [],
            options=[
                ("grpc.max_receive_message_length", settings.max_request_bytes + _FRAMING_BYTES),
                ("grpc.max_send_message_length", -1),
                # Trainers ping during long calls; the default answers that with GOAWAY.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers((RewardServicer(service).handler(),))
        self._names = [SERVICE_NAME]
        described = []
        for name in settings.enabled_dialects:
            if name in dialects:
                handler = dialects[name](service)
                self._server.add_generic_rpc_handlers((handler,))
                self._names.append(handler.service_name())
                if isinstance(handler, DescribedHandler):
                    described.append(handler.file)
        self._server.add_generic_rpc_handlers((health_handler(self._health),))
        if settings.reflection:
            add_reflection(self._server, self._names, described)

    async def start(self) -> int:
        """Binds and serves; returns the port. Health says NOT_SERVING until told otherwise."""
        await self.set_serving(False)
        settings = self._settings
        assert settings.grpc_port is not None
        credentials = grpc_tls(settings)

        def open_port(port: int) -> int:
            address = f"{_bracketed(settings.host)}:{port}"
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)

        port = bind(
            open_port,
            settings.host,
            settings.grpc_port,
            "--grpc-port",
            next_free=settings.next_free_port,
        )
        await self._server.start()
        return port

    async def set_serving(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._names):
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones finish for `grace_s` seconds."""
        await self._server.stop(grace_s)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
