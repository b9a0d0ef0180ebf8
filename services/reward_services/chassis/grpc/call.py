"""What every gRPC method of a service has in common: the call's id, how an error is answered."""

from __future__ import annotations

import math
from typing import NoReturn

import grpc

from reward_api.errors import RewardError

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def given_request_id(context: grpc.aio.ServicerContext) -> str:
    """The metadata `x-request-id`, or nothing. An id in the message itself takes its place."""
    metadata = context.invocation_metadata() or ()
    return next((str(value) for key, value in metadata if key == "x-request-id"), "")


def given_key(context: grpc.aio.ServicerContext) -> str:
    """The metadata `idempotency-key`, or nothing."""
    metadata = context.invocation_metadata() or ()
    return next((str(value) for key, value in metadata if key == "idempotency-key"), "")


async def abort(context: grpc.aio.ServicerContext, error: RewardError) -> NoReturn:
    """Ends the call with the error's status; the trailers carry its reason and when to come back."""
    trailers = [("reward-reason", str(error.reason))]
    if error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(_CODES[error.grpc_code], error.message, tuple(trailers))
    raise AssertionError("abort returned")
