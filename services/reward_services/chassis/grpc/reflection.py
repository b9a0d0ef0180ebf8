"""gRPC reflection for every service that is offered, also one under another project's name.

A dialect's messages live in a package of our own (protobuf refuses a second definition of a name in one
process), so that its published description goes into a pool that only the reflection service reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2

from reward_api.wire.v1 import reward_pb2
from reward_services.chassis.grpc.library import HEALTH, reflection_handler


class DescribedHandler(grpc.ServiceRpcHandler):
    """The methods of a service, and the file that describes them under their published names."""

    def __init__(self, handler: grpc.ServiceRpcHandler, file: FileDescriptorProto) -> None:
        self._handler = handler
        self.file = file

    def service_name(self) -> str:
        return self._handler.service_name()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler.service(handler_call_details)


def published_file(
    messages: FileDescriptor, service_name: str, methods: Sequence[str]
) -> FileDescriptorProto:
    """The file of `messages` as if it were of the package of `service_name`, with that service:
    a method `X` takes `XRequest` and gives `XResponse`."""
    package, _, name = service_name.rpartition(".")
    own = messages.package
    text = messages.serialized_pb
    file = FileDescriptorProto.FromString(text)
    file.name, file.package = f"{service_name}.proto", package
    for message in file.message_type:
        _rename(message, f".{own}.", f".{package}.")
    service = file.service.add(name=name)
    for method in methods:
        service.method.add(
            name=method,
            input_type=f".{package}.{method}Request",
            output_type=f".{package}.{method}Response",
        )
    return file


def add_reflection(
    server: grpc.aio.Server, names: Sequence[str], files: Sequence[FileDescriptorProto]
) -> None:
    """Raises ImportError without grpcio-reflection."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError:
        raise ImportError(
            "reflection needs grpcio-reflection: pip install 'flow-rewards[reflection]'"
        ) from None
    pool = DescriptorPool()
    for module in (reward_pb2, health_pb2, reflection_pb2):
        _add(pool, module.DESCRIPTOR)
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
    offered = (*names, HEALTH, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(  # pyright: ignore[reportAttributeAccessIssue]
        service_names=offered, pool=pool
    )
    request = reflection_pb2.ServerReflectionRequest
    handler = reflection_handler(servicer, reflection.SERVICE_NAME, request)
    server.add_generic_rpc_handlers((handler,))


def _add(pool: DescriptorPool, file: FileDescriptor) -> None:
    for needed in file.dependencies:
        _add(pool, needed)
    pool.AddSerializedFile(file.serialized_pb)


def _rename(message: Any, own: str, published: str) -> None:
    for field in message.field:
        if field.type_name.startswith(own):
            field.type_name = published + field.type_name.removeprefix(own)
    for nested in message.nested_type:
        _rename(nested, own, published)
