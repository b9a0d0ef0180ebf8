"""A reward service as a reward function of TRL's GRPOTrainer and RLOOTrainer::

    trainer = GRPOTrainer(..., reward_funcs=[as_trl("http://host:8101")])

TRL calls it with `prompts`, `completions` and the columns of the dataset. In the list that it takes
back, None stands for "no score". TRL adds up the rewards that a sample has, so that one whose only
reward is None is trained on with 0: by default a failure is therefore raised.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from reward_api.client import AsyncRewardClient
from reward_api.errors import InvalidRequest, Reason

logger = logging.getLogger(__name__)

TrlReward = Callable[..., Awaitable[list[float | None]]]


def as_trl(
    reward: str | Sequence[str] | AsyncRewardClient,
    *,
    name: str = "reward",
    metadata_column: str = "metadata",
    on_error: Literal["raise", "none"] = "raise",
    **options: Any,
) -> TrlReward:
    """``async fn(prompts, completions, **columns) -> [N scores or None]``.

    A completion is an image (PIL, array, tensor or the bytes of a file), or a conversation whose
    last message holds one as a part of type "image". A prompt is a string, or a conversation whose
    text parts are taken. ``metadata_column`` names the column with each sample's metadata, if the
    dataset has it. ``name`` is what TRL logs; ``options`` are those of AsyncRewardClient.

    With on_error="none" an item without a score is None, which is for a reward beside others; each
    is logged. Raises InvalidRequest for completions that hold no image, and with "raise" the
    RewardError (ItemsFailed) of what has no score.
    """
    client = (
        reward if isinstance(reward, AsyncRewardClient) else AsyncRewardClient(reward, **options)
    )

    async def reward_fn(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        batch = await client.score(
            [_image(completion) for completion in completions],
            [_text(prompt) for prompt in prompts],
            columns.get(metadata_column),
            on_error="raise" if on_error == "raise" else "nan",
        )
        for i, failure in batch.errors.items():
            logger.warning("%s: completion %d has no score: %s", name, i, failure)
        return [
            value if is_valid else None
            for value, is_valid in zip(batch.values.tolist(), batch.valid, strict=True)
        ]

    reward_fn.__name__ = name
    return reward_fn


def _image(completion: Any) -> Any:
    if not isinstance(completion, list):
        return completion
    content = completion[-1].get("content") if completion else None
    parts = content if isinstance(content, list) else []
    images = [part.get("image") for part in parts if part.get("type") == "image"]
    if len(images) != 1:
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            f"a completion must end with a message that holds one image; this one has {len(images)}",
        )
    return images[0]


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(text for message in prompt for text in _texts(message.get("content")))


def _texts(content: str | Sequence[Mapping[str, Any]] | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [str(part["text"]) for part in content or () if part.get("type") == "text"]
