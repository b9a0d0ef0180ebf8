"""The Open Inference Protocol v2 as far as both its transports share it: tensors to a ScoreRequest,
a ScoreResponse to tensors, and what the server says of itself.

Inputs: IMAGE (UINT8 [N, H, W, 3 or 1], or BYTES [N]: PNG, JPEG or WebP files), PROMPT (BYTES [N],
UTF-8), METADATA (BYTES [N], a JSON object each); the last two may be left out. Outputs: SCORE (FP64
[N]) and the reward's sub-scores under their names. The protocol has no errors of single elements:
when an item has no score the call fails, and the error names the items.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, Reason
from reward_api.items import make_items
from reward_api.wire.json_text import values_of
from reward_api.wire.messages import Image, PackedImages, ScoreRequest, ScoreResponse
from reward_services import __version__
from reward_services.chassis.service import RewardService, State
from reward_services.dialects.common import scores_of, sub_score_lists

SERVER_NAME = "flow-rewards"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "model_repository")
PLATFORM = "reward"
MAX_RANK = 8
"""Most numbers in a tensor's shape."""
SCORE = "SCORE"
INPUTS = {
    "IMAGE": ("UINT8", (-1, -1, -1, 3)),
    "PROMPT": ("BYTES", (-1,)),
    "METADATA": ("BYTES", (-1,)),
}


@dataclass(frozen=True)
class Tensor:
    """An input: UINT8 elements as one buffer, BYTES elements as a list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | Sequence[bytes | memoryview]


@dataclass(frozen=True)
class Parameters:
    """What a caller asks for beside its tensors."""

    priority: int = 0
    timeout_s: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Parameters:
        """`priority`: 1 goes first, above 3 is as 3. `timeout`: microseconds; 0: the default."""
        priority = _whole_number(given, "priority")
        timeout_us = _whole_number(given, "timeout")
        return cls(min(priority, 3), timeout_us / 1e6 if timeout_us else None)


def score_request(
    model: str, version: str, request_id: str, tensors: Sequence[Tensor], parameters: Parameters
) -> ScoreRequest:
    """Raises InvalidRequest."""
    check_version(version)
    inputs = {tensor.name: tensor for tensor in tensors}
    if len(inputs) != len(tensors) or not inputs.keys() <= INPUTS.keys():
        raise _invalid(
            f"inputs are {', '.join(INPUTS)}, each once; got {[t.name for t in tensors]}"
        )
    if "IMAGE" not in inputs:
        raise _invalid("the input IMAGE is missing")
    image = inputs["IMAGE"]
    packed = _packed(image) if image.datatype == "UINT8" else None
    files = None if packed else _elements(image)
    count = packed.count if packed else len(files or ())
    prompts = (
        [_text(e) for e in _elements(inputs["PROMPT"])] if "PROMPT" in inputs else [""] * count
    )
    metadata = [_object(e) for e in _elements(inputs["METADATA"])] if "METADATA" in inputs else None
    items = make_items(count, prompts, metadata, None)
    if files:
        items = [
            item.model_copy(update={"image": Image(data=file)})
            for item, file in zip(items, files, strict=True)
        ]
    return ScoreRequest(
        model=model,
        request_id=request_id,
        items=items,
        packed_images=packed,
        priority=parameters.priority,
    )


def outputs(response: ScoreResponse, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """float64 [N] by name: those `wanted`, or all. Raises RewardError when an item has no score."""
    scores = scores_of(response)
    lists = {SCORE: [score.value for score in scores], **sub_score_lists(scores)}
    missing = [name for name in wanted if name not in lists]
    if missing:
        raise _invalid(f"there is no output {missing[0]!r}; outputs are {', '.join(lists)}")
    return {name: np.array(lists[name], "<f8") for name in wanted or lists}


def split_elements(raw: memoryview) -> list[memoryview]:
    """BYTES on the wire: each element is preceded by its length, 4 bytes little-endian."""
    elements = []
    position = 0
    while position < len(raw):
        if len(raw) - position < 4:
            raise _invalid("a BYTES tensor ends within the length of an element")
        (size,) = struct.unpack_from("<I", raw, position)
        position += 4
        if len(raw) - position < size:
            raise _invalid("a BYTES tensor ends within an element")
        elements.append(raw[position : position + size])
        position += size
    return elements


def check_model(service: RewardService, model: str, version: str) -> None:
    """Raises InvalidRequest (MODEL_NOT_FOUND)."""
    if model != service.name:
        raise InvalidRequest(
            Reason.MODEL_NOT_FOUND, f"this service is {service.name!r}, not {model[:64]!r}"
        )
    check_version(version)


def check_version(version: str) -> None:
    if version not in ("", __version__):
        raise InvalidRequest(
            Reason.MODEL_NOT_FOUND, f"the version is {__version__}, not {version[:64]!r}"
        )


def output_names(service: RewardService) -> list[str]:
    """Raises Unavailable while the model loads."""
    return [SCORE, *(score.name for score in service.info.sub_scores)]


_CONFIG_TYPES = {"UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING", "FP64": "TYPE_FP64"}


def model_config(service: RewardService) -> dict[str, Any]:
    """The part of Triton's model configuration that says how to call the model. `max_batch_size` is
    that of a request; the dimensions are those of one item. Raises Unavailable while it loads."""
    return {
        "name": service.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": service.settings.max_request_items,
        "input": [
            {
                "name": name,
                "data_type": _CONFIG_TYPES[datatype],
                "dims": list(shape[1:]) or [1],
                **({} if shape[1:] else {"reshape": {"shape": []}}),
                "optional": name != "IMAGE",
            }
            for name, (datatype, shape) in INPUTS.items()
        ],
        "output": [
            {
                "name": name,
                "data_type": _CONFIG_TYPES["FP64"],
                "dims": [1],
                "reshape": {"shape": []},
            }
            for name in output_names(service)
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": 1000 * service.settings.max_queue_delay_ms
        },
        "model_transaction_policy": {"decoupled": False},
    }


def statistics(service: RewardService) -> dict[str, Any]:
    """What Triton's clients read of a model's work since its start, from the service's metrics."""
    seen = service.metrics.totals
    return {
        "name": service.name,
        "version": __version__,
        "last_inference": seen.last_answer_ms,
        "inference_count": seen.items,
        "execution_count": seen.batches,
        "inference_stats": {
            "success": {"count": seen.successes, "ns": seen.success_ns},
            "fail": {"count": seen.failures, "ns": seen.failure_ns},
            "queue": {"count": seen.successes, "ns": seen.queue_ns},
            "compute_input": {"count": seen.successes, "ns": seen.decode_ns},
            "compute_infer": {"count": seen.successes, "ns": seen.inference_ns},
            "compute_output": {"count": seen.successes, "ns": 0},
        },
    }


def index_entry(service: RewardService) -> dict[str, str]:
    """The service's one model as an entry of Triton's repository index."""
    is_ready = service.state is State.READY
    return {
        "name": service.name,
        "version": __version__,
        "state": "READY" if is_ready else "UNAVAILABLE",
        "reason": "" if is_ready else str(service.state),
    }


def _packed(tensor: Tensor) -> PackedImages:
    if len(tensor.shape) != 4 or min(tensor.shape) < 1 or tensor.shape[3] not in (1, 3):
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"IMAGE as UINT8 has the shape [N, H, W, 3], not {list(tensor.shape)}",
        )
    count, height, width, channels = tensor.shape
    if len(tensor.data) != math.prod(tensor.shape):  # before anything is made for each of `count`
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"IMAGE has {len(tensor.data)} bytes, its shape {list(tensor.shape)} needs "
            f"{math.prod(tensor.shape)}",
        )
    return PackedImages(
        data=tensor.data, count=count, height=height, width=width, channels=channels
    )


def _elements(tensor: Tensor) -> Sequence[bytes | memoryview]:
    """The elements of a BYTES tensor of shape [N] or [N, 1]."""
    if tensor.datatype != "BYTES" or isinstance(tensor.data, (bytes, memoryview)):
        raise _invalid(f"{tensor.name} cannot be {tensor.datatype}; send BYTES")
    if math.prod(tensor.shape) != len(tensor.data):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH,
            f"{tensor.name} has {len(tensor.data)} elements, its shape is {list(tensor.shape)}",
        )
    return tensor.data


def _text(element: bytes | memoryview) -> str:
    try:
        return bytes(element).decode()
    except UnicodeDecodeError:
        raise _invalid("an element of PROMPT is not UTF-8") from None


def _object(element: bytes | memoryview) -> dict[str, Any] | None:
    try:
        value = values_of(element) if len(element) else None
    except InvalidRequest as error:
        raise InvalidRequest(
            Reason.SCHEMA, f"an element of METADATA is no JSON: {error.message}"
        ) from None
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(Reason.SCHEMA, "an element of METADATA is no JSON object")
    return value


def _whole_number(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _invalid(f"the parameter {name} must be a whole number, not {value!r}")
    return value


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
