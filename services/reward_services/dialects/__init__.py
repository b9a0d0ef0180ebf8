"""The protocols of other trainers and servers, on the same core as our own. Each is a thin
translation to and from `RewardService.score`; README.md says what each takes and how it fails.

`ServiceSettings.dialects` names those that are served.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from fastapi import APIRouter

from reward_services.chassis.service import RewardService
from reward_services.dialects import (
    flow_factory,
    get_reward,
    oip_grpc,
    oip_http,
    pickled,
    unirl,
)

HTTP_ROUTERS: dict[str, APIRouter] = {
    "oip": oip_http.router,
    "flow-factory": flow_factory.router,
    "unirl": unirl.router,
    "get-reward": get_reward.router,
    "pickle": pickled.router,
}

GRPC_HANDLERS: dict[str, Callable[[RewardService], grpc.ServiceRpcHandler]] = {
    "oip": oip_grpc.handler,
}
