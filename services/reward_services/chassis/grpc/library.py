"""The services that grpc's own packages bring, health and reflection, behind handlers that read bytes.

Left to itself, grpc parses their requests before any code of ours runs, answers bytes that do not parse
with UNKNOWN, and writes a traceback into the log for each: whoever reaches the port could fill a disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_MAX_BYTES = 4096


def health_handler(servicer: Any) -> grpc.GenericRpcHandler:
    """grpc.health.v1.Health of the library's `servicer`: bytes that are no request are
    INVALID_ARGUMENT."""
    kind = health_pb2.HealthCheckRequest

    async def check(data: bytes, context: Any) -> bytes:
        answer = await servicer.Check(await _parsed(kind, data, context), context)
        return answer.SerializeToString()

    async def watch(data: bytes, context: Any) -> None:
        await servicer.Watch(await _parsed(kind, data, context), context)

    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(
            watch, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)


def reflection_handler(servicer: Any, name: str, request: Any) -> grpc.GenericRpcHandler:
    """The reflection service `name` of the library's `servicer`; `request`: its message."""

    async def info(parts: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async def parsed() -> AsyncIterator[Any]:
            async for data in parts:
                yield await _parsed(request, data, context)

        async for answer in servicer.ServerReflectionInfo(parsed(), context):
            yield answer.SerializeToString()

    methods = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(info)}
    return grpc.method_handlers_generic_handler(name, methods)


async def _parsed(kind: Any, data: bytes, context: Any) -> Any:
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{len(data)} bytes")
        return kind.FromString(data)
    except Exception:  # DecodeError; its module differs between protobuf versions
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a {kind.DESCRIPTOR.full_name}")
