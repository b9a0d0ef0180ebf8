import math

import pytest

from reward_api.errors import Reason
from reward_api.wire.wire_errors import error_of_response, error_of_rpc


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b"", None),
        ({"retry-after": "2.5"}, b"", 2.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", None),
        ({"retry-after": "-3"}, b"", None),
        ({"retry-after": "inf"}, b"", None),
        ({"retry-after": "9"}, b'{"retry_after_ms": 250}', 9),  # not a problem of ours
    ],
)
def test_retry_after(headers, body, expected):
    error = error_of_response(503, headers, body, "http://a")
    assert error.retry_after_s == expected
    assert error.reason is Reason.CONNECTION


def test_the_milliseconds_of_the_problem_are_finer_than_the_header():
    body = (
        b'{"title": "t", "status": 429, "detail": "d", "reason": "QUEUE_FULL",'
        b' "retry_after_ms": 250}'
    )
    error = error_of_response(429, {"retry-after": "1"}, body, "http://a")
    assert (error.reason, error.retry_after_s) == (Reason.QUEUE_FULL, 0.25)


def test_reasons_of_newer_services():
    body = b'{"title": "t", "status": 400, "detail": "d", "reason": "NEWER"}'
    assert error_of_response(400, {}, body, "http://a").reason is Reason.INTERNAL
    assert error_of_rpc(3, "d", [("reward-reason", "NEWER")], "grpc://a").reason is Reason.INTERNAL


@pytest.mark.parametrize(
    ("code", "trailers", "reason"),
    [
        (14, [], Reason.CONNECTION),
        (8, [], Reason.REQUEST_TOO_LARGE),
        (8, [("grpc-retry-pushback-ms", "10")], Reason.QUEUE_FULL),
        (13, [("some-bin", b"\x00")], Reason.INTERNAL),
        (2, [("grpc-retry-pushback-ms", "soon")], Reason.INTERNAL),
        (7, [], Reason.AUTH),
        (1, [], Reason.CONNECTION),
        (14, [("reward-reason", "DRAINING")], Reason.DRAINING),
    ],
)
def test_statuses_of_grpc(code, trailers, reason):
    assert error_of_rpc(code, "details", trailers, "grpc://a").reason is reason


def test_pushback():
    assert error_of_rpc(8, "", [("grpc-retry-pushback-ms", "250")], "a").retry_after_s == 0.25
    assert error_of_rpc(8, "", [("grpc-retry-pushback-ms", "-1")], "a").retry_after_s == math.inf
