"""The messages of reward.proto as Python types: what the client sends and what a service answers.

They are also the JSON form of the HTTP protocol: pixel data is base64 in JSON, or a count of bytes
(`binary_data_size`) that follow the JSON header (see framing.py). Defaults are those of proto3.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from reward_api.errors import STATUS, ItemFailure, Reason


def _to_bytes(value: object) -> bytes | bytearray | memoryview:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a base64 string")
    if value.startswith("data:"):
        _, _, value = value.partition(",")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        broken = "\n" in value or "\r" in value
        hint = "; it has line breaks, which `base64 -w0` leaves out" if broken else ""
        raise ValueError(f"not valid base64: {error}{hint}") from None


# bytes | memoryview: a memoryview is a slice of the request body; raw pixels are not copied.
ImageBytes = Annotated[
    Any,
    BeforeValidator(_to_bytes),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), when_used="json"),
    Field(json_schema_extra={"type": "string", "format": "byte"}),
]


AnyReason = Annotated[
    Reason, BeforeValidator(lambda name: name if name in _REASONS else Reason.INTERNAL)
]
_REASONS = frozenset(Reason)


_EXACT = 2**53


def with_whole_numbers(value: Any) -> Any:
    """JSON with every 2.0 as 2: JSON has one kind of number, gRPC's Struct only floats, and tables
    (pandas, datasets) make floats of integers. All protocols give a reward the same metadata."""
    match value:
        case float() if value.is_integer() and abs(value) <= _EXACT:
            return int(value)
        case dict():
            return {key: with_whole_numbers(inner) for key, inner in value.items()}
        case list():
            return [with_whole_numbers(inner) for inner in value]
        case _:
            return value


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Reply(Message):
    """What a service sends: a client ignores the fields and reasons of newer services."""

    model_config = ConfigDict(extra="ignore")


class Image(Message):
    """One image: an encoded file (PNG, JPEG, WebP), or raw uint8 pixels when `height` is given.

    In JSON a bare base64 string (or data URL) stands for an encoded image.
    """

    data: ImageBytes = b""
    binary_data_size: int | None = Field(default=None, ge=0)
    """Binary form only: `data` is empty and this many bytes follow the JSON header."""
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    channels: int = 3

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"data": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_both_sides(self) -> Image:
        if (self.height is None) != (self.width is None):
            raise ValueError("a raw image needs both height and width")
        return self

    @property
    def is_raw(self) -> bool:
        return self.height is not None


class PackedImages(Message):
    """uint8 pixels [count, height, width, channels] of all items: item i takes image i."""

    data: ImageBytes = b""
    binary_data_size: int | None = Field(default=None, ge=0)
    count: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = 3


class Item(Message):
    """What is scored: an image, its prompt and what else the reward reads."""

    id: str = ""
    prompt: str = ""
    image: Image | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(with_whole_numbers)] = Field(
        default_factory=dict
    )


class ScoreRequest(Message):
    model: str = ""
    request_id: str = ""
    items: list[Item]
    packed_images: PackedImages | None = None
    priority: int = Field(default=0, ge=0, le=3)
    include_details: bool = False


class GradientRequest(ScoreRequest):
    """A ScoreRequest for ScoreGradient; the same on the wire, where the method tells them apart."""


class PixelGradient(Reply):
    """d value / d pixel, pixels in 0..1: float16 little-endian [height, width, channels] of the decoded
    RGB image, times `scale`, its largest absolute number. gradients.py packs and unpacks it."""

    data: ImageBytes = b""
    binary_data_size: int | None = Field(default=None, ge=0)
    """Binary form only: `data` is empty and this many bytes follow the JSON header."""
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = 3
    scale: float


class ItemScore(Reply):
    """`value` and all of `scores` are finite."""

    value: float
    scores: dict[str, float] = Field(default_factory=dict)
    details: dict[str, Any] | None = None
    gradient: PixelGradient | None = None
    """In answers of ScoreGradient only."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value) and all(map(math.isfinite, self.scores.values()))


class ItemError(Reply):
    reason: AnyReason
    code: int
    """google.rpc.Code"""
    message: str
    retryable: bool

    @classmethod
    def of(cls, failure: ItemFailure) -> ItemError:
        status = STATUS[failure.reason]
        return cls(
            reason=failure.reason,
            code=status.grpc,
            message=failure.message,
            retryable=status.retryable,
        )


class ItemResult(Reply):
    """Exactly one of `score` and `error`."""

    id: str = ""
    score: ItemScore | None = None
    error: ItemError | None = None

    @model_validator(mode="after")
    def _one_outcome(self) -> ItemResult:
        if (self.score is None) == (self.error is None):
            raise ValueError("an item has exactly one of score and error")
        return self


class Timing(Reply):
    """Milliseconds; a stage that ran in several batches reports the slowest."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    inference_ms: float = 0.0
    total_ms: float = 0.0


class ScoreResponse(Reply):
    model: str = ""
    version: str = ""
    revision: str = ""
    request_id: str = ""
    results: list[ItemResult]
    timing: Timing = Timing()
    batch_sizes: list[int] = []


class ScoreRange(Reply):
    """A score's name, bounds (None: unbounded) and direction."""

    name: str
    minimum: float | None = None
    maximum: float | None = None
    higher_is_better: bool = True
    description: str = ""


class RewardMetadata(Reply):
    name: str
    version: str = ""
    revision: str = ""
    """Digest of weights and settings: equal revisions give equal scores."""
    description: str = ""
    score: ScoreRange
    sub_scores: list[ScoreRange] = []
    prompt_required: bool = False
    metadata_schema: str = ""
    encodings: list[str] = []
    limits: dict[str, int] = {}
    settings: dict[str, str] = {}
    device: str = ""
    license: str = ""
    has_gradient: bool = False
    """Whether ScoreGradient is answered."""


class Problem(BaseModel):
    """application/problem+json (RFC 9457) with the reward's own fields."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: AnyReason
    request_id: str = ""
    retry_after_ms: int | None = None
    errors: list[dict[str, Any]] = []
    error: str | None = None
    """`detail` again, where the client of another protocol asks."""
