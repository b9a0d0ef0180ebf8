"""Reward services as the reward functions that flow_grpo, DDPO and DiffusionNFT call.

Those codebases take ``fn(images, prompts, metadata) -> (scores, info)``, where images are float
NCHW tensors in [0, 1] or uint8 NHWC arrays, and scores a list of floats::

    reward_fn = as_flow_grpo("http://host:8101")
    scores, info = reward_fn(images, prompts, metadata)

The originals turn failures into 0.0 or retry for hours; this one raises a RewardError, and a sample
without a score ends the call as ItemsFailed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_api.batch import ScoreBatch
from reward_api.sync import RewardClient, RewardSuite

RewardFunction = Callable[..., tuple[Any, dict[str, Any]]]


def as_flow_grpo(reward: str | Sequence[str] | RewardClient, **options: Any) -> RewardFunction:
    """One reward: ``fn(images, prompts, metadata) -> ([N scores], {sub-score: [N scores]})``.

    ``options`` are those of AsyncRewardClient, for a reward given by URL. flow_grpo sends its
    remote rewards JPEG images; ``encoding="jpeg"`` reproduces that, the default is lossless.
    """
    client = reward if isinstance(reward, RewardClient) else RewardClient(reward, **options)

    def reward_fn(
        images: Any, prompts: Sequence[str], metadata: Any = None
    ) -> tuple[list[float], dict[str, Any]]:
        batch = client.score(images, prompts, _per_item(metadata), on_error="raise")
        return batch.values.tolist(), {k: v.tolist() for k, v in batch.scores.items()}

    return reward_fn


def as_flow_grpo_multi(
    rewards: RewardSuite | Mapping[str, str | Sequence[str]],
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> RewardFunction:
    """Several rewards, in place of flow_grpo's ``multi_score``: ``fn(images, prompts, metadata)
    -> ({name: [N scores], ..., "avg": [N]}, {})``, where "avg" is the weighted sum."""
    suite = (
        rewards if isinstance(rewards, RewardSuite) else RewardSuite(rewards, weights, **options)
    )

    def reward_fn(
        images: Any, prompts: Sequence[str], metadata: Any = None, only_strict: bool = True
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        scores = suite.score(images, prompts, _per_item(metadata), on_error="raise")
        details = {name: _every(batch) for name, batch in scores.rewards.items()}
        return {**details, "avg": scores.values.tolist()}, {}

    return reward_fn


def _per_item(metadata: Any) -> Sequence[Mapping[str, Any] | None] | None:
    """Those callers pass ``{}`` or ``None`` when they have no metadata."""
    return list(metadata) if metadata else None


def _every(batch: ScoreBatch) -> list[float]:
    return batch.settle("raise").values.tolist()
