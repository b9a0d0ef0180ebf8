"""Every way a score can fail, in one table and one exception tree.

::

    RewardError                 .reason, .retryable, .retry_after_s, .http_status, .grpc_code
    ├── InvalidRequest          the caller must change the request (400, 404, 413, 415, 422)
    ├── AuthenticationFailed    missing or wrong token (401)
    ├── Overloaded              queue full or deadline unreachable; see `retry_after_s` (429)
    ├── Unavailable             loading, draining, device lost, not reachable (503)
    ├── DeadlineExceeded        the time given is over (504)
    ├── ServerFault             a bug on the server (500)
    ├── ItemFailure             one item has no score; its neighbours may have theirs
    └── ItemsFailed             what the client raises for them: .failures maps index to ItemFailure
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple


class Reason(StrEnum):
    """Why an item or a call failed; the names are those of `enum Reason` in reward.proto."""

    INVALID_REQUEST = "INVALID_REQUEST"
    COUNT_MISMATCH = "COUNT_MISMATCH"
    MISSING_PROMPT = "MISSING_PROMPT"
    MISSING_METADATA = "MISSING_METADATA"
    SCHEMA = "SCHEMA"
    PROMPT_TARGET = "PROMPT_TARGET"
    IMAGE_DECODE = "IMAGE_DECODE"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    IMAGE_NON_FINITE = "IMAGE_NON_FINITE"
    IMAGE_SHAPE = "IMAGE_SHAPE"
    NON_FINITE_SCORE = "NON_FINITE_SCORE"
    JUDGE_PARSE = "JUDGE_PARSE"
    MODEL_ERROR = "MODEL_ERROR"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    AUTH = "AUTH"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    QUEUE_FULL = "QUEUE_FULL"
    DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"
    LOADING = "LOADING"
    DRAINING = "DRAINING"
    DEVICE_FAILED = "DEVICE_FAILED"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
    UNSUPPORTED = "UNSUPPORTED"
    CONNECTION = "CONNECTION"
    KEY_REUSED = "KEY_REUSED"


class Status(NamedTuple):
    http: int
    grpc: int
    """google.rpc.Code"""
    retryable: bool


# google.rpc.Code numbers, spelled out so that this module needs no grpc import.
_CANCELLED, _INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _NOT_FOUND = 1, 3, 4, 5
_RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = 8, 12, 13, 14, 16

STATUS: dict[Reason, Status] = {
    Reason.INVALID_REQUEST: Status(400, _INVALID_ARGUMENT, False),
    Reason.COUNT_MISMATCH: Status(422, _INVALID_ARGUMENT, False),
    Reason.MISSING_PROMPT: Status(422, _INVALID_ARGUMENT, False),
    Reason.MISSING_METADATA: Status(422, _INVALID_ARGUMENT, False),
    Reason.SCHEMA: Status(422, _INVALID_ARGUMENT, False),
    Reason.PROMPT_TARGET: Status(422, _INVALID_ARGUMENT, False),
    Reason.IMAGE_DECODE: Status(422, _INVALID_ARGUMENT, False),
    Reason.IMAGE_TOO_LARGE: Status(422, _INVALID_ARGUMENT, False),
    Reason.IMAGE_NON_FINITE: Status(422, _INVALID_ARGUMENT, False),
    Reason.IMAGE_SHAPE: Status(422, _INVALID_ARGUMENT, False),
    Reason.NON_FINITE_SCORE: Status(500, _INTERNAL, False),
    Reason.JUDGE_PARSE: Status(500, _INTERNAL, True),
    Reason.MODEL_ERROR: Status(500, _INTERNAL, False),
    Reason.OUT_OF_MEMORY: Status(503, _RESOURCE_EXHAUSTED, True),
    Reason.AUTH: Status(401, _UNAUTHENTICATED, False),
    Reason.MODEL_NOT_FOUND: Status(404, _NOT_FOUND, False),
    Reason.REQUEST_TOO_LARGE: Status(413, _INVALID_ARGUMENT, False),
    Reason.QUEUE_FULL: Status(429, _RESOURCE_EXHAUSTED, True),
    Reason.DEADLINE_UNREACHABLE: Status(429, _RESOURCE_EXHAUSTED, True),
    Reason.LOADING: Status(503, _UNAVAILABLE, True),
    Reason.DRAINING: Status(503, _UNAVAILABLE, True),
    Reason.DEVICE_FAILED: Status(503, _UNAVAILABLE, True),
    Reason.DEADLINE: Status(504, _DEADLINE_EXCEEDED, True),
    Reason.CANCELLED: Status(499, _CANCELLED, False),
    Reason.INTERNAL: Status(500, _INTERNAL, True),
    Reason.UNSUPPORTED: Status(415, _UNIMPLEMENTED, False),
    Reason.CONNECTION: Status(503, _UNAVAILABLE, True),
    Reason.KEY_REUSED: Status(422, _INVALID_ARGUMENT, False),
}


class RewardError(Exception):
    """Base of everything this package raises on purpose.

    ``reason`` says what happened; ``retry_after_s`` is the server's hint in seconds, or None.
    """

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        return STATUS[self.reason].retryable

    @property
    def http_status(self) -> int:
        return STATUS[self.reason].http

    @property
    def grpc_code(self) -> int:
        return STATUS[self.reason].grpc

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.reason, self.message, self.retry_after_s))


class InvalidRequest(RewardError):
    """The caller must change the request."""


class AuthenticationFailed(RewardError):
    """No token, or a wrong one."""


class Overloaded(RewardError):
    """The queue is full, or the deadline cannot be met; try again after ``retry_after_s``."""


class Unavailable(RewardError):
    """Loading, draining, device lost, or no connection: another replica may answer."""


class DeadlineExceeded(RewardError):
    """The time the caller gave is over."""


class ServerFault(RewardError):
    """A bug on the server's side."""


class ItemFailure(RewardError):
    """One item has no score. Rewards raise it in ``prepare`` or return it from ``score``."""


class ItemsFailed(RewardError):
    """Some items of a batch have no score: ``failures`` maps their index to an ItemFailure."""

    def __init__(self, failures: dict[int, ItemFailure], total: int) -> None:
        index, first = next(iter(failures.items()))
        super().__init__(
            first.reason,
            f"{len(failures)} of {total} items have no score; item {index}: {first.message}",
        )
        self.failures = failures
        self.total = total

    def __reduce__(self) -> tuple[Any, ...]:
        return (ItemsFailed, (self.failures, self.total))


def _rebuild(
    cls: type[RewardError], reason: Reason, message: str, retry_after_s: float | None
) -> RewardError:
    return cls(reason, message, retry_after_s=retry_after_s)


def error_for(reason: Reason, message: str, *, retry_after_s: float | None = None) -> RewardError:
    """The exception of a failed call, chosen by its reason."""
    cls: type[RewardError]
    match STATUS[reason]:
        case Status(http=401):
            cls = AuthenticationFailed
        case Status(http=429):
            cls = Overloaded
        case Status(http=503):
            cls = Unavailable
        case Status(http=504):
            cls = DeadlineExceeded
        case Status(http=500):
            cls = ServerFault
        case _:
            cls = InvalidRequest
    return cls(reason, message, retry_after_s=retry_after_s)
