"""Rewards as a service: score images from any program. See proto/README.md.

Names load on first use: `import reward_api` takes milliseconds and brings neither gRPC nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_api.batch import ScoreBatch
    from reward_api.callers.flow_grpo import as_flow_grpo, as_flow_grpo_geneval, as_flow_grpo_multi
    from reward_api.callers.trl import as_trl
    from reward_api.client import AsyncRewardClient
    from reward_api.errors import (
        AuthenticationFailed,
        DeadlineExceeded,
        InvalidRequest,
        ItemFailure,
        ItemsFailed,
        Overloaded,
        Reason,
        RewardError,
        ServerFault,
        Unavailable,
    )
    from reward_api.suite import AsyncRewardSuite, SuiteScores
    from reward_api.sync import RewardClient, RewardSuite
    from reward_api.wire.images import EncodedImages, encode_images
    from reward_api.wire.messages import RewardMetadata

_MODULES = {
    "AsyncRewardClient": "client",
    "AsyncRewardSuite": "suite",
    "AuthenticationFailed": "errors",
    "DeadlineExceeded": "errors",
    "EncodedImages": "wire.images",
    "InvalidRequest": "errors",
    "ItemFailure": "errors",
    "ItemsFailed": "errors",
    "Overloaded": "errors",
    "Reason": "errors",
    "RewardClient": "sync",
    "RewardError": "errors",
    "RewardMetadata": "wire.messages",
    "RewardSuite": "sync",
    "ScoreBatch": "batch",
    "ServerFault": "errors",
    "SuiteScores": "suite",
    "Unavailable": "errors",
    "as_flow_grpo": "callers.flow_grpo",
    "as_flow_grpo_geneval": "callers.flow_grpo",
    "as_flow_grpo_multi": "callers.flow_grpo",
    "as_trl": "callers.trl",
    "encode_images": "wire.images",
}

__all__ = [
    "AsyncRewardClient",
    "AsyncRewardSuite",
    "AuthenticationFailed",
    "DeadlineExceeded",
    "EncodedImages",
    "InvalidRequest",
    "ItemFailure",
    "ItemsFailed",
    "Overloaded",
    "Reason",
    "RewardClient",
    "RewardError",
    "RewardMetadata",
    "RewardSuite",
    "ScoreBatch",
    "ServerFault",
    "SuiteScores",
    "Unavailable",
    "as_flow_grpo",
    "as_flow_grpo_geneval",
    "as_flow_grpo_multi",
    "as_trl",
    "encode_images",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
