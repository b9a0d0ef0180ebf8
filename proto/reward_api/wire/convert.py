"""messages.py to and from the generated protobuf classes; the two describe the same contract.

Total: every valid message converts, and comes back equal. Three rules concern Struct (`metadata`,
`details`), whose only number is a double:

- an integral number up to 2**53 in size comes back as int, any other as float (`1 == 1.0`);
- an integer beyond that travels as its decimal string, as protobuf's own JSON form does;
- NaN and infinities become null, as they do in the JSON form of a response. (The client refuses
  all of these in metadata before anything is sent.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value
from pydantic import ValidationError

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.framing import describe_invalid
from reward_api.wire.messages import (
    Image,
    Item,
    ItemError,
    ItemResult,
    ItemScore,
    PackedImages,
    PixelGradient,
    RewardMetadata,
    ScoreRange,
    ScoreRequest,
    ScoreResponse,
    Timing,
)
from reward_api.wire.proto_fields import FREE, Within, field_at
from reward_api.wire.v1 import reward_pb2 as pb

_EXACT = 2**53
# More than any request has that the services take; looking at each takes the event loop's time.
_MAX_FIELDS = 4096
REQUEST_FIELDS: Within = {
    pb.ScoreRequest.ITEMS_FIELD_NUMBER: {
        pb.Item.IMAGE_FIELD_NUMBER: {pb.Image.RAW_FIELD_NUMBER: {}},
        pb.Item.METADATA_FIELD_NUMBER: FREE,
    },
    pb.ScoreRequest.PACKED_IMAGES_FIELD_NUMBER: {},
}
_REASONS = {pb.Reason.Value(reason.value): reason for reason in Reason}


def request_to_proto(request: ScoreRequest) -> pb.ScoreRequest:
    return pb.ScoreRequest.FromString(serialize_request(request))


def serialize_request(request: ScoreRequest) -> bytes:
    """The request in protobuf's wire format.

    The small fields are serialized by protobuf, the pixels are put between them by hand: they are
    copied once, where building and serializing a message would copy them three times.
    """
    small = pb.ScoreRequest(
        model=request.model,
        request_id=request.request_id,
        priority=request.priority,
        include_details=request.include_details,
    )
    parts: list[bytes | memoryview] = [small.SerializeToString()]
    for item in request.items:
        parts += _field(pb.ScoreRequest.ITEMS_FIELD_NUMBER, _item_parts(item))
    packed = request.packed_images
    if packed is not None:
        shape = pb.PackedImages(
            count=packed.count, height=packed.height, width=packed.width, channels=packed.channels
        )
        data = _field(pb.PackedImages.DATA_FIELD_NUMBER, [packed.data])
        parts += _field(
            pb.ScoreRequest.PACKED_IMAGES_FIELD_NUMBER, [shape.SerializeToString(), *data]
        )
    return b"".join(parts)


def split_request(data: bytes) -> tuple[bytes, PackedImages | None]:
    """A serialized request without its packed images, and those with their pixels as a slice of
    `data`: protobuf's own parser would copy them twice.

    Anything unusual (no packed images, several, thousands of fields, not well-formed) is left in the
    first part, for protobuf to judge.
    """
    view = memoryview(data)
    try:
        outer = _cut(view, pb.ScoreRequest.PACKED_IMAGES_FIELD_NUMBER)
        inner = outer and _cut(outer[1], pb.PackedImages.DATA_FIELD_NUMBER)
        if not outer or not inner:
            return data, None
        shape = pb.PackedImages.FromString(inner[0])
        packed = PackedImages(
            data=inner[1],
            count=shape.count,
            height=shape.height,
            width=shape.width,
            channels=shape.channels or 3,
        )
    except (IndexError, ValueError, DecodeError):
        return data, None
    return outer[0], packed


def _cut(view: memoryview, number: int) -> tuple[bytes, memoryview] | None:
    """A message without its field `number`, and that field's content; None unless there is exactly
    one among few. Raises IndexError or ValueError when the message is malformed."""
    found: tuple[int, int, int] | None = None
    position = num_fields = 0
    while position < len(view):
        num_fields += 1
        if num_fields > _MAX_FIELDS:
            return None
        start = position
        tag, content, position = field_at(view, position)
        if tag == number << 3 | 2:
            if found:
                return None
            found = start, content, position
    if position > len(view):
        raise ValueError("the message ends within a field")
    if not found:
        return None
    start, content, end = found
    return b"".join((view[:start], view[end:])), view[content:end]


def request_from_proto(message: pb.ScoreRequest) -> ScoreRequest:
    """Raises InvalidRequest where the HTTP form would (a raw image without a height)."""
    try:
        return ScoreRequest(
            model=message.model,
            request_id=message.request_id,
            items=[_item_from_proto(item) for item in message.items],
            packed_images=_packed_from_proto(message.packed_images)
            if message.HasField("packed_images")
            else None,
            priority=message.priority,
            include_details=message.include_details,
        )
    except ValidationError as error:
        raise InvalidRequest(Reason.INVALID_REQUEST, describe_invalid(error)) from None


def response_to_proto(response: ScoreResponse) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        model=response.model,
        version=response.version,
        revision=response.revision,
        request_id=response.request_id,
        results=map(_result_to_proto, response.results),
        timing=pb.Timing(**response.timing.model_dump()),
        batch_sizes=response.batch_sizes,
    )


def response_from_proto(message: pb.ScoreResponse) -> ScoreResponse:
    """Raises ValueError when an item has no outcome, which no service of this contract sends."""
    timing = message.timing
    return ScoreResponse(
        model=message.model,
        version=message.version,
        revision=message.revision,
        request_id=message.request_id,
        results=[_result_from_proto(result) for result in message.results],
        timing=Timing(
            queue_ms=timing.queue_ms,
            decode_ms=timing.decode_ms,
            inference_ms=timing.inference_ms,
            total_ms=timing.total_ms,
        ),
        batch_sizes=list(message.batch_sizes),
    )


def metadata_to_proto(metadata: RewardMetadata) -> pb.RewardMetadata:
    plain = metadata.model_dump(exclude={"score", "sub_scores"})
    return pb.RewardMetadata(
        **plain,
        score=_range_to_proto(metadata.score),
        sub_scores=map(_range_to_proto, metadata.sub_scores),
    )


def metadata_from_proto(message: pb.RewardMetadata) -> RewardMetadata:
    return RewardMetadata(
        name=message.name,
        version=message.version,
        revision=message.revision,
        description=message.description,
        score=_range_from_proto(message.score),
        sub_scores=[_range_from_proto(sub) for sub in message.sub_scores],
        prompt_required=message.prompt_required,
        metadata_schema=message.metadata_schema,
        encodings=list(message.encodings),
        limits=dict(message.limits),
        settings=dict(message.settings),
        device=message.device,
        license=message.license,
        has_gradient=message.has_gradient,
    )


def _item_parts(item: Item) -> list[bytes | memoryview]:
    metadata = _to_struct(item.metadata) if item.metadata else None
    small = pb.Item(id=item.id, prompt=item.prompt, metadata=metadata)
    parts: list[bytes | memoryview] = [small.SerializeToString()]
    image = item.image
    if image is not None and image.is_raw:
        shape = pb.RawImage(height=image.height, width=image.width, channels=image.channels)
        data = _field(pb.RawImage.DATA_FIELD_NUMBER, [image.data])
        raw = _field(pb.Image.RAW_FIELD_NUMBER, [shape.SerializeToString(), *data])
        parts += _field(pb.Item.IMAGE_FIELD_NUMBER, raw)
    elif image is not None:
        encoded = _field(pb.Image.ENCODED_FIELD_NUMBER, [image.data])
        parts += _field(pb.Item.IMAGE_FIELD_NUMBER, encoded)
    return parts


def _field(number: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """A length-delimited field: its tag, the length as a varint, its content."""
    length = sum(map(len, parts))
    head = bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return [bytes(head), *parts]


def _item_from_proto(message: pb.Item) -> Item:
    return Item(
        id=message.id,
        prompt=message.prompt,
        image=_image_from_proto(message.image) if message.HasField("image") else None,
        metadata=_from_struct(message.metadata) if message.HasField("metadata") else {},
    )


def _image_from_proto(message: pb.Image) -> Image:
    if not message.HasField("raw"):
        return Image(data=message.encoded)
    raw = message.raw
    return Image(data=raw.data, height=raw.height, width=raw.width, channels=raw.channels or 3)


def _packed_from_proto(message: pb.PackedImages) -> PackedImages:
    return PackedImages(
        data=message.data,
        count=message.count,
        height=message.height,
        width=message.width,
        channels=message.channels or 3,
    )


def _result_to_proto(result: ItemResult) -> pb.ItemResult:
    message = pb.ItemResult(id=result.id)
    if result.error is not None:
        message.error.CopyFrom(pb.ItemError(**result.error.model_dump(mode="json")))
    elif result.score is not None:
        message.score.value = result.score.value
        message.score.scores.update(result.score.scores)
        if result.score.details is not None:
            message.score.details.CopyFrom(_to_struct(result.score.details))
        gradient = result.score.gradient
        if gradient is not None:
            plain = gradient.model_dump(exclude={"binary_data_size"})
            message.score.gradient.CopyFrom(pb.PixelGradient(**plain))
    return message


def _result_from_proto(message: pb.ItemResult) -> ItemResult:
    match message.WhichOneof("outcome"):
        case "score":
            score = message.score
            details = _from_struct(score.details) if score.HasField("details") else None
            gradient = _gradient_from_proto(score.gradient) if score.HasField("gradient") else None
            return ItemResult(
                id=message.id,
                score=ItemScore(
                    value=score.value, scores=dict(score.scores), details=details, gradient=gradient
                ),
            )
        case "error":
            error = message.error
            return ItemResult(
                id=message.id,
                error=ItemError(
                    # A newer service may know reasons that this client does not.
                    reason=_REASONS.get(error.reason, Reason.INTERNAL),
                    code=error.code,
                    message=error.message,
                    retryable=error.retryable,
                ),
            )
        case _:
            return ItemResult(id=message.id)


def _gradient_from_proto(message: pb.PixelGradient) -> PixelGradient:
    return PixelGradient(
        data=message.data,
        height=message.height,
        width=message.width,
        channels=message.channels,
        scale=message.scale,
    )


def _range_to_proto(score: ScoreRange) -> pb.ScoreRange:
    return pb.ScoreRange(**score.model_dump(exclude_none=True))


def _range_from_proto(message: pb.ScoreRange) -> ScoreRange:
    return ScoreRange(
        name=message.name,
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
        higher_is_better=message.higher_is_better,
        description=message.description,
    )


def _to_struct(mapping: Mapping[str, Any]) -> Struct:
    return Struct(fields={key: _to_value(value) for key, value in mapping.items()})


def _to_value(value: Any) -> Value:
    match value:
        case None:
            return Value(null_value=NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() if abs(value) > _EXACT:
            return Value(string_value=str(value))
        case float() if not math.isfinite(value):
            return Value(null_value=NULL_VALUE)
        case int() | float():
            return Value(number_value=value)
        case str():
            return Value(string_value=value)
        case Mapping():
            return Value(struct_value=_to_struct(value))
        case list() | tuple():
            return Value(list_value=ListValue(values=map(_to_value, value)))
        case _:
            raise TypeError(
                f"{type(value).__name__} is not a JSON value: give None, bool, int, float, str, "
                "list or dict"
            )


def _from_struct(struct: Struct) -> dict[str, Any]:
    return {key: _from_value(value) for key, value in struct.fields.items()}


def _from_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "struct_value":
            return _from_struct(value.struct_value)
        case "list_value":
            return [_from_value(element) for element in value.list_value.values]
        case "null_value" | None:
            return None
        case kind:
            return getattr(value, kind)
