"""What every engine is to the reward: questions with an image in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from reward_api.errors import ItemFailure


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    is_cut: bool = False
    """Generation stopped at the limit of tokens."""


class Engine(Protocol):
    identity: str
    """The model: what else can change an answer."""

    def question(self, image: np.ndarray, text: str) -> Any:
        """A (H, W, 3) uint8 RGB image and what is asked of it, ready to send; on many threads."""
        ...

    def is_available(self) -> bool:
        """Whether the engine answers at all."""
        ...

    def answer(self, questions: Sequence[Any]) -> list[Answer | ItemFailure]:
        """One outcome per question, in order; on the device thread."""
        ...


def picture(image: np.ndarray, side: int | None) -> Image.Image:
    """The image resized to `side` x `side` as flow_grpo does (bicubic, the aspect ratio is lost);
    None: as it is."""
    whole = Image.fromarray(image)
    return whole if side is None else whole.resize((side, side), Image.Resampling.BICUBIC)
