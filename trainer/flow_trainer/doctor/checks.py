"""What a check of `flow-grpo doctor` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flow_trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    message: str
    """What was found; for a failure, with the fix."""
    warns: bool = False
    """It holds, at a cost that the message names."""

    @property
    def word(self) -> str:
        if not self.ok:
            return "FAIL"
        return "warn" if self.warns else "ok"


def attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TrainerError as error:
        return Check(name, False, str(error))
