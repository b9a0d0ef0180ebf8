"""The judges: for each family what to ask, how to read the answer, and which model answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reward_services.unifiedreward import prompts
from reward_services.unifiedreward.answers import (
    AXES,
    RATING,
    Mark,
    read_axes,
    read_final_score,
    read_score_tag,
)


@dataclass(frozen=True, slots=True)
class Family:
    weights: str
    """Hub repository; its last part is the name under which engines are asked for it."""
    prompt: str
    read: Callable[[str], dict[str, Mark]]
    marks: tuple[str, ...] = (RATING,)
    """What `read` finds in a complete answer. All are on the scale 1 to 5."""
    published_prompt: str = ""
    """SHA-256 of the published template with `{prompt}` in the caption's place."""
    license: str = "MIT"

    @property
    def model(self) -> str:
        return self.weights.rpartition("/")[2]


FAMILIES = {
    # LLaVA-OneVision-Qwen2: flow_grpo's judge. The digest is of flow_grpo's text, which starts with
    # "<image>\n"; rendered for the golden requests' captions it gives their digests.
    "v1": Family(
        weights="CodeGoat24/UnifiedReward-7b-v1.5",
        prompt=prompts.FINAL_SCORE,
        read=read_final_score,
        published_prompt="d68ab1dcf4dc3a39ec5dfab963d17fe30a6e5f713eb49f743ed88a4c8ce4317f",
    ),
    # Qwen2.5-VL: the list of elements comes first.
    "qwen": Family(
        weights="CodeGoat24/UnifiedReward-qwen-7b",
        prompt=prompts.ELEMENTS_AND_FINAL_SCORE,
        read=read_final_score,
        published_prompt="f56f919ce3bc6aab3c173a5f836defe195e17e9614753e8b4c3dc2405bd4975b",
    ),
    # UnifiedReward 2.0, on Qwen2.5-VL or Qwen3-VL.
    "acs": Family(
        weights="CodeGoat24/UnifiedReward-2.0-qwen-7b",
        prompt=prompts.AXES,
        read=read_axes,
        marks=AXES,
    ),
    # flow_grpo's `qwenvl`: a plain instruct model, the caption unread.
    "qwenvl": Family(
        weights="Qwen/Qwen2.5-VL-7B-Instruct",
        prompt=prompts.GRADE,
        read=read_score_tag,
        license="Apache-2.0",
    ),
}
