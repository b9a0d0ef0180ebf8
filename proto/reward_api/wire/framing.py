"""The HTTP bodies of ScoreRequest, and of ScoreResponse with gradients: JSON, and JSON followed by the
numbers as they are.

The binary form is that of the Open Inference Protocol's binary tensors. The header
`Inference-Header-Content-Length: n` says that the body starts with n bytes of JSON: a ScoreRequest
in which an image (or `packed_images`) has `binary_data_size` where its `data` would be. The bytes
follow in this order, without padding: those of `packed_images`, then those of the items. Pixels are
therefore never turned into text, and neither side copies them to find them.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import to_json

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.json_text import read_json
from reward_api.wire.messages import (
    Image,
    Item,
    PackedImages,
    PixelGradient,
    ScoreRequest,
    ScoreResponse,
)

CONTENT_TYPE = "application/octet-stream"
LENGTH_HEADER = "inference-header-content-length"

# A field that no message has is named by whoever sent it, at any length.
_MAX_WHERE = 200

_Pixels = TypeVar("_Pixels", Image, PackedImages, PixelGradient)


def encode_request(request: ScoreRequest) -> tuple[dict[str, str], list[bytes | memoryview]]:
    """The headers and the parts of the body of one binary-form call.

    The parts are the JSON header and then the images' own buffers: nothing is copied or joined, so
    those buffers must stay unchanged until the call is over.
    """
    parts: list[bytes | memoryview] = []
    header: dict[str, Any] = request.model_dump(exclude={"items", "packed_images"})
    if request.packed_images is not None:
        header["packed_images"] = _take(request.packed_images, parts)
    header["items"] = [_item_header(item, parts) for item in request.items]
    text = to_json(header)
    parts.insert(0, text)
    headers = {
        "content-type": CONTENT_TYPE,
        "content-length": str(sum(map(len, parts))),
        LENGTH_HEADER: str(len(text)),
    }
    return headers, parts


def decode_request(body: bytes | memoryview, header_length: int) -> ScoreRequest:
    """Reads the binary form; image data are slices (memoryview) of `body`.

    Raises InvalidRequest when the lengths do not add up exactly, or the JSON is not a ScoreRequest.
    """
    view = memoryview(body)
    if not 0 < header_length <= len(view):
        raise _invalid(
            f"{LENGTH_HEADER} is {header_length}, but the body has {len(view)} bytes; "
            "it must count the JSON at the start of the body"
        )
    request = _parse(view[:header_length])
    reader = _Reader(view[header_length:])
    packed = request.packed_images and reader.give(request.packed_images, "packed_images")
    items = [
        item.model_copy(update={"image": reader.give(item.image, f"items.{i}.image")})
        if item.image is not None
        else item
        for i, item in enumerate(request.items)
    ]
    reader.finish()
    return request.model_copy(update={"items": items, "packed_images": packed})


def decode_json(body: bytes | memoryview) -> ScoreRequest:
    """Reads the JSON form, in which image data are base64. Raises InvalidRequest."""
    request = _parse(memoryview(body))
    holders = [request.packed_images, *(item.image for item in request.items)]
    if any(holder is not None and holder.binary_data_size is not None for holder in holders):
        raise _invalid(
            f"binary_data_size needs the binary form: content-type {CONTENT_TYPE} and the header "
            f"{LENGTH_HEADER}"
        )
    return request


def encode_response(response: ScoreResponse) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a binary-form answer: JSON, then the items' gradients in order."""
    parts: list[bytes | memoryview] = []
    results = []
    for result in response.results:
        score, gradient = result.score, result.score and result.score.gradient
        if score is not None and gradient is not None:
            parts.append(gradient.data)
            size = len(gradient.data)
            gradient = gradient.model_copy(update={"data": b"", "binary_data_size": size})
            score = score.model_copy(update={"gradient": gradient})
        results.append(result.model_copy(update={"score": score}))
    text = response.model_copy(update={"results": results}).model_dump_json(exclude_none=True)
    header = text.encode()
    headers = {"content-type": CONTENT_TYPE, LENGTH_HEADER: str(len(header))}
    return headers, b"".join([header, *parts])


def decode_response(body: bytes | memoryview, header_length: int) -> ScoreResponse:
    """Reads the binary form; gradients are slices of `body`. Raises InvalidRequest, ValidationError."""
    view = memoryview(body)
    response = ScoreResponse.model_validate_json(bytes(view[:header_length]))
    reader = _Reader(view[header_length:])
    results = []
    for i, result in enumerate(response.results):
        score, gradient = result.score, result.score and result.score.gradient
        if score is not None and gradient is not None:
            given = reader.give(gradient, f"results.{i}.score.gradient")
            score = score.model_copy(update={"gradient": given})
        results.append(result.model_copy(update={"score": score}))
    reader.finish()
    return response.model_copy(update={"results": results})


def describe_invalid(error: ValidationError) -> str:
    """The first problem of a message as `items.3.image.height: Input should be ...`, without the
    input itself, which may be megabytes of pixels."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    where = ".".join(map(str, first["loc"]))[:_MAX_WHERE] or "body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg']}{more}"


class _Reader:
    """Hands out the bytes behind the JSON header, in order."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._offset = 0

    def give(self, holder: _Pixels, where: str) -> _Pixels:
        size = holder.binary_data_size
        if size is None:
            return holder
        if len(holder.data):
            raise _invalid(f"{where}: give either data or binary_data_size, not both")
        end = self._offset + size
        if end > len(self._view):
            missing = end - len(self._view)
            raise _invalid(f"{where}: the body ends {missing} bytes before this image does")
        data = self._view[self._offset : end]
        self._offset = end
        return holder.model_copy(update={"data": data, "binary_data_size": None})

    def finish(self) -> None:
        left = len(self._view) - self._offset
        if left:
            raise _invalid(f"the body goes on for {left} bytes after its last image")


def _take(holder: Image | PackedImages, parts: list[bytes | memoryview]) -> dict[str, Any]:
    parts.append(holder.data)
    header = holder.model_dump(exclude={"data"}, exclude_none=True)
    header["binary_data_size"] = len(holder.data)
    return header


def _item_header(item: Item, parts: list[bytes | memoryview]) -> dict[str, Any]:
    header: dict[str, Any] = {"id": item.id, "prompt": item.prompt}
    if item.image is not None:
        header["image"] = _take(item.image, parts)
    if item.metadata:
        header["metadata"] = item.metadata
    return header


def _parse(text: memoryview) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate(read_json(text))
    except ValidationError as error:
        raise _invalid(describe_invalid(error)) from None


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
