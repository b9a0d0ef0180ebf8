"""The Open Inference Protocol v2 over HTTP, JSON and binary tensors (see oip.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from pydantic_core import to_json

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.framing import CONTENT_TYPE, LENGTH_HEADER
from reward_api.wire.messages import ScoreRequest
from reward_services import __version__
from reward_services.chassis.http.body import integer_header
from reward_services.chassis.http.call import http_call
from reward_services.chassis.service import RewardService, State
from reward_services.dialects import oip
from reward_services.dialects.common import Body, dialect_router, image_of, json_error, read_json

_MAX_VALUES = 4 * 2**20
"""Pixels as JSON numbers: five images of 512 x 512."""
_SLICE = 65_536


class InputTensor(Body):
    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=oip.MAX_RANK)
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: Any = None


class RequestedOutput(Body):
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferBody(Body):
    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = Field(default_factory=list)


router = dialect_router(json_error)


@router.get("/v2")
async def server_metadata() -> dict[str, Any]:
    return {
        "name": oip.SERVER_NAME,
        "version": __version__,
        "extensions": list(oip.EXTENSIONS),
    }


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """KServe's clients read the body, Triton's the status."""
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(request: Request) -> Response:
    return _readiness(request.app.state.service)


@router.get("/v2/models/{model}/ready")
@router.get("/v2/models/{model}/versions/{version}/ready")
async def model_ready(request: Request, model: str, version: str = "") -> Response:
    service: RewardService = request.app.state.service
    oip.check_model(service, model, version)
    return _readiness(service, name=service.name)


def _readiness(service: RewardService, **more: str) -> Response:
    is_ready = service.state is State.READY
    # The protocol wants 4xx for "no".
    return JSONResponse({**more, "ready": is_ready}, 200 if is_ready else 400)


@router.get("/v2/models/{model}/config")
@router.get("/v2/models/{model}/versions/{version}/config")
async def model_config(request: Request, model: str, version: str = "") -> dict[str, Any]:
    """Triton's model configuration, which its clients ask before they send anything."""
    service: RewardService = request.app.state.service
    oip.check_model(service, model, version)
    return oip.model_config(service)


@router.get("/v2/models/stats")
async def all_statistics(request: Request) -> dict[str, Any]:
    return {"model_stats": [oip.statistics(request.app.state.service)]}


@router.get("/v2/models/{model}/stats")
@router.get("/v2/models/{model}/versions/{version}/stats")
async def statistics(request: Request, model: str, version: str = "") -> dict[str, Any]:
    service: RewardService = request.app.state.service
    oip.check_model(service, model, version)
    return {"model_stats": [oip.statistics(service)]}


@router.post("/v2/repository/index")
async def repository_index(request: Request) -> list[dict[str, str]]:
    return [oip.index_entry(request.app.state.service)]


@router.post("/v2/repository/models/{model}/{action}")
async def repository_action(model: str, action: str) -> None:
    raise InvalidRequest(
        Reason.UNSUPPORTED,
        f"{action} of {model[:64]!r}: a service holds its one model while it runs",
    )


@router.get("/v2/models/{model}")
@router.get("/v2/models/{model}/versions/{version}")
async def model_metadata(request: Request, model: str, version: str = "") -> dict[str, Any]:
    service: RewardService = request.app.state.service
    oip.check_model(service, model, version)
    return {
        "name": service.name,
        "versions": [__version__],
        "platform": oip.PLATFORM,
        "inputs": [
            {"name": name, "datatype": datatype, "shape": list(shape)}
            for name, (datatype, shape) in oip.INPUTS.items()
        ],
        "outputs": [
            {"name": name, "datatype": "FP64", "shape": [-1]} for name in oip.output_names(service)
        ],
    }


@router.post("/v2/models/{model}/infer")
@router.post("/v2/models/{model}/versions/{version}/infer")
async def infer(request: Request, model: str, version: str = "") -> Response:
    async with http_call(request, "oip-http") as call:
        header_length = integer_header(request.headers, LENGTH_HEADER, minimum=1)
        body = await call.body()
        asked, tail = await call.parse(
            partial(_split, body, header_length), header_length or len(body)
        )
        parameters = oip.Parameters.read(asked.parameters)
        if parameters.timeout_s is not None:
            call.timeout_s = min(call.timeout_s, parameters.timeout_s)
        read = partial(_message, asked, tail, parameters, model, version)
        response = await call.score(await call.parse(read, len(body) - len(tail)))
        arrays = oip.outputs(response, [output.name for output in asked.outputs])
    return _answer(asked, arrays, model)


def _split(body: memoryview, header_length: int | None) -> tuple[InferBody, memoryview]:
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise _invalid(f"{LENGTH_HEADER} is {end}, but the body has {len(body)} bytes")
    return read_json(InferBody, body[:end], max_values=_MAX_VALUES), body[end:]


def _message(
    asked: InferBody, tail: memoryview, parameters: oip.Parameters, model: str, version: str
) -> ScoreRequest:
    tensors = []
    for tensor in asked.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            tensors.append(_from_json(tensor))
        else:
            raw, tail = _take(tail, size, tensor.name)
            data = oip.split_elements(raw) if tensor.datatype == "BYTES" else raw
            tensors.append(oip.Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    if tail:
        raise _invalid(f"the body goes on for {len(tail)} bytes after its last tensor")
    return oip.score_request(model, version, asked.id, tensors, parameters)


def _take(tail: memoryview, size: Any, name: str) -> tuple[memoryview, memoryview]:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(tail):
        raise _invalid(f"{name}: binary_data_size is {size!r}, and {len(tail)} bytes are left")
    return tail[:size], tail[size:]


def _from_json(tensor: InputTensor) -> oip.Tensor:
    """Elements in a flat or nested list. JSON has no bytes: files in IMAGE are base64."""
    shape = tuple(tensor.shape)
    if tensor.datatype == "UINT8":
        return oip.Tensor(tensor.name, "UINT8", shape, _pixels(tensor))
    texts = list(_flat(tensor.data))
    if not all(isinstance(text, str) for text in texts):
        raise _invalid(f"{tensor.name}: the data of a BYTES tensor must be strings")
    if tensor.name == "IMAGE":
        return oip.Tensor(tensor.name, tensor.datatype, shape, [image_of(t).data for t in texts])
    return oip.Tensor(tensor.name, tensor.datatype, shape, [text.encode() for text in texts])


def _pixels(tensor: InputTensor) -> bytes:
    if _is_ragged(tensor.data):
        raise _no_pixels(tensor.name)
    leaves = _flat(tensor.data)
    # in slices: converting one lets nothing else run
    return b"".join(
        _bytes_of(leaves[i : i + _SLICE], tensor.name) for i in range(0, len(leaves), _SLICE)
    )


def _bytes_of(numbers: list[Any], name: str) -> bytes:
    try:
        values = np.asarray(numbers)
    except ValueError:
        values = np.empty(0)
    if values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise _no_pixels(name)
    return values.astype(np.uint8).tobytes()


def _no_pixels(name: str) -> InvalidRequest:
    return _invalid(f"{name}: the data of a UINT8 tensor must be numbers from 0 to 255")


def _is_ragged(data: Any) -> bool:
    if not isinstance(data, list):
        return False
    lengths = {len(entry) if isinstance(entry, list) else -1 for entry in data}
    return len(lengths) > 1 or (lengths != {-1} and any(map(_is_ragged, data)))


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [leaf for entry in data for leaf in _flat(entry)]


def _answer(asked: InferBody, arrays: dict[str, np.ndarray], model: str) -> Response:
    """JSON, or JSON and then the bytes of the outputs that were asked for in binary."""
    by_default = asked.parameters.get("binary_data_output", False)
    requested = {output.name: output.parameters for output in asked.outputs}
    described, tail = [], []
    for name, array in arrays.items():
        output = {"name": name, "datatype": "FP64", "shape": list(array.shape)}
        if requested.get(name, {}).get("binary_data", by_default):
            tail.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = array.tolist()
        described.append(output)
    answer = {
        "model_name": model,
        "model_version": __version__,
        "outputs": described,
        **({"id": asked.id} if asked.id else {}),
    }
    return _framed(answer, tail) if tail else JSONResponse(answer)


def _framed(answer: dict[str, Any], tail: Sequence[bytes]) -> Response:
    text = to_json(answer)
    return Response(
        b"".join([text, *tail]), media_type=CONTENT_TYPE, headers={LENGTH_HEADER: str(len(text))}
    )


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
