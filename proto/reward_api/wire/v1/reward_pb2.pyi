from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    INVALID_REQUEST: _ClassVar[Reason]
    COUNT_MISMATCH: _ClassVar[Reason]
    MISSING_PROMPT: _ClassVar[Reason]
    MISSING_METADATA: _ClassVar[Reason]
    SCHEMA: _ClassVar[Reason]
    PROMPT_TARGET: _ClassVar[Reason]
    IMAGE_DECODE: _ClassVar[Reason]
    IMAGE_TOO_LARGE: _ClassVar[Reason]
    IMAGE_NON_FINITE: _ClassVar[Reason]
    IMAGE_SHAPE: _ClassVar[Reason]
    NON_FINITE_SCORE: _ClassVar[Reason]
    JUDGE_PARSE: _ClassVar[Reason]
    MODEL_ERROR: _ClassVar[Reason]
    OUT_OF_MEMORY: _ClassVar[Reason]
    AUTH: _ClassVar[Reason]
    MODEL_NOT_FOUND: _ClassVar[Reason]
    REQUEST_TOO_LARGE: _ClassVar[Reason]
    QUEUE_FULL: _ClassVar[Reason]
    DEADLINE_UNREACHABLE: _ClassVar[Reason]
    LOADING: _ClassVar[Reason]
    DRAINING: _ClassVar[Reason]
    DEVICE_FAILED: _ClassVar[Reason]
    DEADLINE: _ClassVar[Reason]
    CANCELLED: _ClassVar[Reason]
    INTERNAL: _ClassVar[Reason]
    UNSUPPORTED: _ClassVar[Reason]
    CONNECTION: _ClassVar[Reason]
    KEY_REUSED: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
INVALID_REQUEST: Reason
COUNT_MISMATCH: Reason
MISSING_PROMPT: Reason
MISSING_METADATA: Reason
SCHEMA: Reason
PROMPT_TARGET: Reason
IMAGE_DECODE: Reason
IMAGE_TOO_LARGE: Reason
IMAGE_NON_FINITE: Reason
IMAGE_SHAPE: Reason
NON_FINITE_SCORE: Reason
JUDGE_PARSE: Reason
MODEL_ERROR: Reason
OUT_OF_MEMORY: Reason
AUTH: Reason
MODEL_NOT_FOUND: Reason
REQUEST_TOO_LARGE: Reason
QUEUE_FULL: Reason
DEADLINE_UNREACHABLE: Reason
LOADING: Reason
DRAINING: Reason
DEVICE_FAILED: Reason
DEADLINE: Reason
CANCELLED: Reason
INTERNAL: Reason
UNSUPPORTED: Reason
CONNECTION: Reason
KEY_REUSED: Reason

class ScoreRequest(_message.Message):
    __slots__ = ("model", "request_id", "items", "packed_images", "priority", "include_details")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PACKED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DETAILS_FIELD_NUMBER: _ClassVar[int]
    model: str
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    packed_images: PackedImages
    priority: int
    include_details: bool
    def __init__(self, model: _Optional[str] = ..., request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., packed_images: _Optional[_Union[PackedImages, _Mapping]] = ..., priority: _Optional[int] = ..., include_details: bool = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "prompt", "image", "metadata")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    prompt: str
    image: Image
    metadata: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., prompt: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("data", "height", "width", "channels")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    channels: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class PackedImages(_message.Message):
    __slots__ = ("data", "count", "height", "width", "channels")
    DATA_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    count: int
    height: int
    width: int
    channels: int
    def __init__(self, data: _Optional[bytes] = ..., count: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "version", "revision", "request_id", "results", "timing", "batch_sizes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    revision: str
    request_id: str
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    timing: Timing
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., revision: _Optional[str] = ..., request_id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., batch_sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("id", "score", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: ItemScore
    error: ItemError
    def __init__(self, id: _Optional[str] = ..., score: _Optional[_Union[ItemScore, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemScore(_message.Message):
    __slots__ = ("value", "scores", "details", "gradient")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    value: float
    scores: _containers.ScalarMap[str, float]
    details: _struct_pb2.Struct
    gradient: PixelGradient
    def __init__(self, value: _Optional[float] = ..., scores: _Optional[_Mapping[str, float]] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., gradient: _Optional[_Union[PixelGradient, _Mapping]] = ...) -> None: ...

class PixelGradient(_message.Message):
    __slots__ = ("data", "height", "width", "channels", "scale")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    channels: int
    scale: float
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("reason", "code", "message", "retryable")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    code: int
    message: str
    retryable: bool
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., retryable: bool = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "inference_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    inference_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class GetMetadataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewardMetadata(_message.Message):
    __slots__ = ("name", "version", "revision", "description", "score", "sub_scores", "prompt_required", "metadata_schema", "encodings", "limits", "settings", "device", "license", "has_gradient")
    class LimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SUB_SCORES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    METADATA_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    HAS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    revision: str
    description: str
    score: ScoreRange
    sub_scores: _containers.RepeatedCompositeFieldContainer[ScoreRange]
    prompt_required: bool
    metadata_schema: str
    encodings: _containers.RepeatedScalarFieldContainer[str]
    limits: _containers.ScalarMap[str, int]
    settings: _containers.ScalarMap[str, str]
    device: str
    license: str
    has_gradient: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., revision: _Optional[str] = ..., description: _Optional[str] = ..., score: _Optional[_Union[ScoreRange, _Mapping]] = ..., sub_scores: _Optional[_Iterable[_Union[ScoreRange, _Mapping]]] = ..., prompt_required: bool = ..., metadata_schema: _Optional[str] = ..., encodings: _Optional[_Iterable[str]] = ..., limits: _Optional[_Mapping[str, int]] = ..., settings: _Optional[_Mapping[str, str]] = ..., device: _Optional[str] = ..., license: _Optional[str] = ..., has_gradient: bool = ...) -> None: ...

class ScoreRange(_message.Message):
    __slots__ = ("name", "minimum", "maximum", "higher_is_better", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    minimum: float
    maximum: float
    higher_is_better: bool
    description: str
    def __init__(self, name: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., higher_is_better: bool = ..., description: _Optional[str] = ...) -> None: ...
