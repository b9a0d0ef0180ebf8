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
from typing import Any, Literal

from reward_api.batch import ScoreBatch
from reward_api.callers.geneval import SUB_SCORES, published_answer
from reward_api.errors import InvalidRequest, Reason
from reward_api.sync import RewardClient, RewardSuite

RewardFunction = Callable[..., tuple[Any, dict[str, Any]]]


def as_flow_grpo(reward: str | Sequence[str] | RewardClient, **options: Any) -> RewardFunction:
    """One reward: ``fn(images, prompts, metadata) -> ([N scores], {sub-score: [N scores]})``.

    ``options`` are those of AsyncRewardClient, for a reward given by URL. flow_grpo sends its
    remote rewards JPEG images; ``encoding="jpeg"`` reproduces that, the default is lossless.
    """
    client = _client(reward, options)

    def reward_fn(
        images: Any, prompts: Sequence[str], metadata: Any = None, *multi: Any, **multi_by_name: Any
    ) -> tuple[list[float], dict[str, Any]]:
        if multi or multi_by_name:
            raise InvalidRequest(
                Reason.INVALID_REQUEST,
                f"called with {_named(multi_by_name) or 'four arguments'}, as multi_score's function "
                "is: use as_flow_grpo_multi({name: url}, {name: weight})",
            )
        batch = client.score(images, prompts, _per_item(metadata), on_error="raise")
        return batch.values.tolist(), {k: v.tolist() for k, v in batch.scores.items()}

    return reward_fn


def as_flow_grpo_geneval(
    reward: str | Sequence[str] | RewardClient, **options: Any
) -> Callable[..., tuple[Any, ...]]:
    """A GenEval service in place of flow_grpo's ``geneval_score``: ``fn(images, prompts, metadatas,
    only_strict) -> (scores, rewards, strict_rewards, group_rewards, group_strict_rewards)``.

    ``scores`` is the published training reward (sub-score flow_grpo) whatever the service's main
    score is; as_flow_grpo gives the main score. The groups hold -10.0 for images of another tag.
    """
    client = _client(reward, options)

    def reward_fn(
        images: Any, prompts: Sequence[str], metadatas: Any, only_strict: bool = True
    ) -> tuple[Any, ...]:
        metadata = list(metadatas)
        batch = client.score(images, prompts, metadata, on_error="raise")
        return tuple(_published(batch, metadata, only_strict).values())

    return reward_fn


def as_flow_grpo_multi(
    rewards: RewardSuite | Mapping[str, str | Sequence[str]],
    weights: Mapping[str, float] | None = None,
    *,
    ref_images: Literal["refuse", "ignore"] = "refuse",
    **options: Any,
) -> RewardFunction:
    """Several rewards, in place of flow_grpo's ``multi_score``: ``fn(images, prompts, metadata)
    -> ({name: [N scores], ..., "avg": [N]}, {})``, where "avg" is the weighted sum.

    The function also has flow_grpo's newer form ``(images, prompts, metadata, ref_images,
    only_strict)``. No service here reads a reference image: with "refuse" one is an InvalidRequest,
    with "ignore" the edited images are scored alone, which is right for rewards of the result
    (ocr, geneval, pickscore, aesthetic).

    A reward named "geneval" adds the keys that flow_grpo's evaluation reads: `accuracy`,
    `strict_accuracy`, and both for each tag.
    """
    if isinstance(rewards, Mapping) and "avg" in rewards:
        raise ValueError("rewards: 'avg' is the weighted sum's key; give this reward another name")
    suite = (
        rewards if isinstance(rewards, RewardSuite) else RewardSuite(rewards, weights, **options)
    )

    def reward_fn(
        images: Any,
        prompts: Sequence[str],
        metadata: Any = None,
        references: Any = None,
        only_strict: bool = True,
        **by_name: Any,
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        if isinstance(references, bool):  # the older form's fourth
            references, only_strict = None, references
        references = by_name.pop("ref_images", references)
        if by_name:
            raise TypeError(f"reward_fn() got an unexpected keyword argument {_named(by_name)}")
        if references is not None and ref_images == "refuse":
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                "ref_images: no service here reads a reference image; score the edited images alone "
                'with as_flow_grpo_multi(..., ref_images="ignore")',
            )
        per_item = _per_item(metadata)
        scores = suite.score(images, prompts, per_item, on_error="raise")
        details: dict[str, list[float]] = {}
        for name, batch in scores.rewards.items():
            values = _every(batch)
            if name == "geneval":
                details |= _accuracies(batch, per_item, only_strict)
            details[name] = values
        return {**details, "avg": scores.values.tolist()}, {}

    return reward_fn


def _client(reward: str | Sequence[str] | RewardClient, options: dict[str, Any]) -> RewardClient:
    return reward if isinstance(reward, RewardClient) else RewardClient(reward, **options)


def _named(arguments: Mapping[str, Any]) -> str:
    return ", ".join(arguments)


def _accuracies(
    batch: ScoreBatch, metadata: Sequence[Mapping[str, Any] | None] | None, only_strict: bool
) -> dict[str, list[float]]:
    answer = _published(batch, metadata or [None] * len(batch), only_strict)
    strict, official = answer["group_strict_rewards"], answer["group_rewards"]
    return {
        "accuracy": answer["rewards"],
        "strict_accuracy": answer["strict_rewards"],
        **{f"{tag}_strict_accuracy": values for tag, values in strict.items()},
        **{f"{tag}_accuracy": values for tag, values in official.items()},
    }


def _published(
    batch: ScoreBatch, metadata: Sequence[Mapping[str, Any] | None], only_strict: bool
) -> dict[str, Any]:
    if not batch.scores.keys() >= SUB_SCORES:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"not a GenEval service: it lacks {sorted(SUB_SCORES)}"
        )
    lists = {name: batch.scores[name].tolist() for name in SUB_SCORES}
    scores = [{name: values[i] for name, values in lists.items()} for i in range(len(batch))]
    tags = [str((one or {}).get("tag", "")) for one in metadata]
    return published_answer(tags, scores, only_strict=only_strict)


def _per_item(metadata: Any) -> Sequence[Mapping[str, Any] | None] | None:
    """Those callers pass ``{}`` or ``None`` when they have no metadata."""
    return list(metadata) if metadata is not None and len(metadata) else None


def _every(batch: ScoreBatch) -> list[float]:
    return batch.settle("raise").values.tolist()
