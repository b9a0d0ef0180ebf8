"""What a scored batch looks like to the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reward_api.errors import ItemFailure, ItemsFailed
from reward_api.wire.messages import ItemResult, PixelGradient, Timing

OnError = Literal["raise", "nan"] | Callable[["ScoreBatch"], None]
"""What happens when items have no score.

"raise"     ItemsFailed, which maps their indices to the reasons.
"nan"       they are NaN in `values`, False in `valid` and listed in `errors`; so are items whose
            whole call failed for a cause that is not the caller's (a service that is down).
a callable  as "nan", after the callable has seen the batch; it may log, or raise.
"""


@dataclass
class ScoreBatch:
    """One reward's scores of N items, in the order they were given."""

    values: np.ndarray
    """float64 [N]; NaN where the item has no score. Range and direction: RewardMetadata.score."""
    valid: np.ndarray
    """bool [N]; False where the item has no score."""
    errors: dict[int, ItemFailure] = field(default_factory=dict)
    """Why not, by index."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """Named sub-scores, each float64 [N] and NaN where missing."""
    details: list[dict[str, Any] | None] = field(default_factory=list)
    """Evidence per item, when include_details was set."""
    gradients: list[PixelGradient | None] = field(default_factory=list)
    """d score / d pixel per item, from `score_gradient`; `wire.gradients.unpack_gradient` gives numbers."""
    model: str = ""
    versions: frozenset[str] = frozenset()
    """Code versions of the services that answered."""
    revisions: frozenset[str] = frozenset()
    """Digests of weights and settings of the services that answered; more than one means that the
    scores of this batch do not all come from the same reward."""
    timing: Timing = field(default_factory=Timing)
    """The slowest of the batch's calls, as the services saw it, in milliseconds."""
    wall_s: float = 0.0
    """Seconds that the caller waited."""

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def empty(cls, size: int) -> ScoreBatch:
        """Nothing scored yet: all invalid, no errors."""
        return cls(
            values=np.full(size, np.nan),
            valid=np.zeros(size, bool),
            details=[None] * size,
            gradients=[None] * size,
        )

    def put(self, index: int, result: ItemResult | ItemFailure) -> None:
        """Records an item's outcome, replacing an earlier error."""
        if isinstance(result, ItemFailure):
            self.errors[index] = result
            return
        if result.error is not None:
            self.errors[index] = ItemFailure(result.error.reason, result.error.message)
            return
        score = result.score
        assert score is not None
        self.errors.pop(index, None)
        self.values[index] = score.value
        self.valid[index] = True
        self.details[index] = score.details
        self.gradients[index] = score.gradient
        for name, value in score.scores.items():
            if name not in self.scores:
                self.scores[name] = np.full(len(self), np.nan)
            self.scores[name][index] = value

    def note_timing(self, timing: Timing) -> None:
        slowest = {
            name: max(getattr(self.timing, name), getattr(timing, name))
            for name in Timing.model_fields
        }
        self.timing = Timing(**slowest)

    def settle(self, on_error: OnError) -> ScoreBatch:
        """Applies the caller's policy for items without a score. Raises ItemsFailed."""
        self.errors = dict(sorted(self.errors.items()))
        if self.errors and on_error == "raise":
            raise ItemsFailed(self.errors, len(self))
        if self.errors and callable(on_error):
            on_error(self)
        return self


def check_on_error(on_error: Any) -> None:
    if on_error not in ("raise", "nan") and not callable(on_error):
        raise ValueError(f'on_error={on_error!r}: choose "raise", "nan" or a callable')
