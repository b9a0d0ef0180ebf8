"""The Open Inference Protocol v2 over gRPC: inference.GRPCInferenceService (see oip.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_api.wire.messages import ScoreRequest
from reward_api.wire.proto_fields import Within, check_fields
from reward_api.wire.v1 import open_inference_pb2 as pb
from reward_services import __version__
from reward_services.chassis.grpc.call import abort, given_key, given_request_id
from reward_services.chassis.grpc.reflection import DescribedHandler, published_file
from reward_services.chassis.service import RewardService, State
from reward_services.dialects import oip

SERVICE_NAME = "inference.GRPCInferenceService"

_INLINE_PARSE_BYTES = 16 * 1024
_SMALL_BYTES = 4096
_SLICE = 65_536

_PARAMETER: Within = {2: {}}  # an entry of a map: its key, its value
_INFER_FIELDS: Within = {
    pb.ModelInferRequest.PARAMETERS_FIELD_NUMBER: _PARAMETER,
    pb.ModelInferRequest.INPUTS_FIELD_NUMBER: {
        pb.ModelInferRequest.InferInputTensor.PARAMETERS_FIELD_NUMBER: _PARAMETER,
        pb.ModelInferRequest.InferInputTensor.CONTENTS_FIELD_NUMBER: {},
    },
    pb.ModelInferRequest.OUTPUTS_FIELD_NUMBER: {
        pb.ModelInferRequest.InferRequestedOutputTensor.PARAMETERS_FIELD_NUMBER: _PARAMETER
    },
}


def handler(service: RewardService) -> grpc.ServiceRpcHandler:
    servicer = _Servicer(service)
    methods = {
        "ServerLive": servicer.server_live,
        "ServerReady": servicer.server_ready,
        "ModelReady": servicer.model_ready,
        "ServerMetadata": servicer.server_metadata,
        "ModelMetadata": servicer.model_metadata,
        "ModelInfer": servicer.infer,
        "ModelConfig": servicer.model_config,
        "ModelStatistics": servicer.statistics,
        "RepositoryIndex": servicer.repository_index,
    }
    handler: Any = grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()},
    )
    return DescribedHandler(handler, published_file(pb.DESCRIPTOR, SERVICE_NAME, list(methods)))


class _Servicer:
    """Takes and gives messages as bytes: gRPC would parse them on the event loop, however large."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def server_live(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return pb.ServerReadyResponse(ready=self._is_ready).SerializeToString()

    async def model_ready(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            asked = _parsed(pb.ModelReadyRequest, data)
            oip.check_model(self._service, asked.name, asked.version)
        except RewardError as error:
            await abort(context, error)
        return pb.ModelReadyResponse(ready=self._is_ready).SerializeToString()

    async def server_metadata(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return pb.ServerMetadataResponse(
            name=oip.SERVER_NAME, version=__version__, extensions=oip.EXTENSIONS
        ).SerializeToString()

    async def model_metadata(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            asked = _parsed(pb.ModelMetadataRequest, data)
            oip.check_model(self._service, asked.name, asked.version)
            names = oip.output_names(self._service)
        except RewardError as error:
            await abort(context, error)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=self._service.name,
            versions=[__version__],
            platform=oip.PLATFORM,
            inputs=[
                tensor(name=name, datatype=datatype, shape=shape)
                for name, (datatype, shape) in oip.INPUTS.items()
            ],
            outputs=[tensor(name=name, datatype="FP64", shape=[-1]) for name in names],
        ).SerializeToString()

    async def model_config(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            asked = _parsed(pb.ModelConfigRequest, data)
            oip.check_model(self._service, asked.name, asked.version)
            config = oip.model_config(self._service)
        except RewardError as error:
            await abort(context, error)
        answer = pb.ModelConfigResponse(config=ParseDict(config, pb.ModelConfig()))
        return answer.SerializeToString()

    async def statistics(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            asked = _parsed(pb.ModelStatisticsRequest, data)
            if asked.name:
                oip.check_model(self._service, asked.name, asked.version)
        except RewardError as error:
            await abort(context, error)
        stats = ParseDict(oip.statistics(self._service), pb.ModelStatistics())
        return pb.ModelStatisticsResponse(model_stats=[stats]).SerializeToString()

    async def repository_index(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            asked = _parsed(pb.RepositoryIndexRequest, data)
        except RewardError as error:
            await abort(context, error)
        entry = pb.RepositoryIndexResponse.ModelIndex(**oip.index_entry(self._service))
        is_wanted = self._is_ready or not asked.ready
        return pb.RepositoryIndexResponse(models=[entry] if is_wanted else []).SerializeToString()

    async def infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        service = self._service
        service.metrics.received_bytes.inc(len(data))
        try:
            with service.call("oip-grpc") as call, service.admission.hold_bytes(len(data)):
                call.name(given_request_id(context))
                call.idempotency_key = given_key(context)
                timeout_s = service.timeout_s(context.time_remaining())
                asked, message, parameters = await self._parse(data)
                del data
                if parameters.timeout_s is not None:
                    timeout_s = min(timeout_s, parameters.timeout_s)
                response = await service.score(
                    message, timeout_s=timeout_s - call.elapsed_s, call=call
                )
                arrays = oip.outputs(response, [output.name for output in asked.outputs])
                return _answer(asked, arrays)
        except RewardError as error:
            await abort(context, error)

    @property
    def _is_ready(self) -> bool:
        return self._service.state is State.READY

    async def _parse(self, data: bytes) -> tuple[Any, ScoreRequest, oip.Parameters]:
        if len(data) <= _INLINE_PARSE_BYTES:
            return _read(data)
        return await asyncio.get_running_loop().run_in_executor(self._service.pool, _read, data)


def _parsed(message: Any, data: bytes, within: Within | None = None) -> Any:
    """`within`: for messages that may be large; the others name a model."""
    if within is None and len(data) > _SMALL_BYTES:
        raise InvalidRequest(Reason.INVALID_REQUEST, f"a {message.__name__} of {len(data)} bytes")
    check_fields(data, within or {})
    try:
        return message.FromString(data)
    except Exception as error:  # DecodeError; its module differs between protobuf versions
        raise InvalidRequest(Reason.INVALID_REQUEST, f"not a {message.__name__}: {error}") from None


def _read(data: bytes) -> tuple[Any, ScoreRequest, oip.Parameters]:
    asked = _parsed(pb.ModelInferRequest, data, _INFER_FIELDS)
    raw = [memoryview(entry) for entry in asked.raw_input_contents]
    if raw and len(raw) != len(asked.inputs):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH, f"{len(raw)} raw_input_contents for {len(asked.inputs)} inputs"
        )
    tensors = [_tensor(given, raw[i] if raw else None) for i, given in enumerate(asked.inputs)]
    parameters = oip.Parameters.read(_plain(asked.parameters))
    message = oip.score_request(
        asked.model_name, asked.model_version, asked.id, tensors, parameters
    )
    # The pixels are in the message now; what is left of the request names the outputs.
    asked.ClearField("raw_input_contents")
    return asked, message, parameters


def _tensor(given: Any, raw: memoryview | None) -> oip.Tensor:
    if len(given.shape) > oip.MAX_RANK:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{given.name[:64]}: the shape has {len(given.shape)} numbers"
        )
    shape = tuple(given.shape)
    if given.datatype == "BYTES":
        data = list(given.contents.bytes_contents) if raw is None else oip.split_elements(raw)
    elif raw is not None:
        data = raw
    else:
        data = _pixels(given)
    return oip.Tensor(given.name, given.datatype, shape, data)


def _pixels(given: Any) -> bytes:
    numbers = given.contents.uint_contents
    try:  # in slices: converting one lets nothing else run
        return b"".join(bytes(numbers[i : i + _SLICE]) for i in range(0, len(numbers), _SLICE))
    except ValueError:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{given.name}: UINT8 contents go from 0 to 255"
        ) from None


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "int64_param")
        for name, value in parameters.items()
    }


def _answer(asked: Any, arrays: Mapping[str, Any]) -> bytes:
    output = pb.ModelInferResponse.InferOutputTensor
    return pb.ModelInferResponse(
        model_name=asked.model_name,
        model_version=__version__,
        id=asked.id,
        outputs=[
            output(name=name, datatype="FP64", shape=array.shape) for name, array in arrays.items()
        ],
        raw_output_contents=[array.tobytes() for array in arrays.values()],
    ).SerializeToString()
