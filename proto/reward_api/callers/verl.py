"""A reward service as the reward function of verl-omni's visual rewards::

    reward.custom_reward_function.path=pkg://reward_api.verl
    +reward.custom_reward_function.reward_kwargs.server_url=http://host:8101

One image per call, as verl-omni makes them; the service puts the calls of all workers into batches.
A failure raises. verl-omni's manager of several rewards trains on 0 all the same unless the reward is
`required=true`: the settings are in services/reward_services/dialects/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reward_api.client import AsyncRewardClient


async def compute_score(
    solution_image: Any,
    ground_truth: str,
    server_url: str,
    extra_info: Mapping[str, Any] | None = None,
    token: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """{"score": main score, and each sub-score under its name}.

    ``solution_image`` is [C, H, W] or [1, C, H, W], uint8 or float in [0, 1]; ``ground_truth`` the
    prompt. ``extra_info["metadata"]`` is the item's metadata, where there is any. ``server_url`` may
    name several replicas with commas between. What else verl-omni passes is not read.

    Raises RewardError; ItemsFailed when the image has no score.
    """
    is_batch = getattr(solution_image, "ndim", 3) == 4
    metadata = (extra_info or {}).get("metadata")
    batch = await _client(server_url, token).score(
        solution_image if is_batch else [solution_image], [ground_truth], [metadata]
    )
    return {
        **{name: float(values[0]) for name, values in batch.scores.items()},
        "score": float(batch.values[0]),
    }


@lru_cache(maxsize=64)
def _client(server_url: str, token: str | None) -> AsyncRewardClient:
    return AsyncRewardClient(server_url.split(","), token=token)
