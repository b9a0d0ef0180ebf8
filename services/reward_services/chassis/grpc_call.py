"""What every gRPC method of a service has in common: how an error is answered."""

from __future__ import annotations

import math
from typing import NoReturn

import grpc

from reward_api.errors import RewardError

_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: grpc.aio.ServicerContext, error: RewardError) -> NoReturn:
    """Ends the call with the error's status; the trailers carry its reason and when to come back."""
    trailers = [("reward-reason", str(error.reason))]
    if error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(_CODES[error.grpc_code], error.message, tuple(trailers))
    raise AssertionError("abort returned")
