"""Scores of samples: joined over micro-batches and ranks, summed up, and as JSON between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flow_trainer.errors import ScoringError
from reward_api import ItemFailure, Reason, ScoreBatch, SuiteScores


@dataclass(slots=True)
class Scores:
    """Scores of N samples, in the order of their rows."""

    values: np.ndarray
    """(N,) float64 weighted sum; NaN where not valid."""
    valid: np.ndarray
    """(N,) bool: every reward of its source scored the sample."""
    rewards: dict[str, ScoreBatch] = field(default_factory=dict)
    wait_s: float = 0.0
    """Seconds in which nothing was done but wait for rewards."""

    def mean(self) -> float | None:
        return float(self.values[self.valid].mean()) if self.valid.any() else None

    def reward_means(self) -> dict[str, float]:
        """Mean of every reward and sub-score over the samples it scored."""
        means: dict[str, float] = {}
        for name, batch in self.rewards.items():
            if batch.valid.any():
                means[name] = float(batch.values[batch.valid].mean())
                for sub, values in batch.scores.items():
                    means[f"{name}.{sub}"] = float(np.asarray(values)[batch.valid].mean())
        return means

    def revisions(self) -> dict[str, str]:
        """Of every reward that scored something; joined by + where replicas differ."""
        return {n: "+".join(sorted(b.revisions)) for n, b in self.rewards.items() if b.revisions}

    def require_one(self) -> None:
        """Raises ScoringError when no sample has a score."""
        if not self.valid.any():
            first = next(e for batch in self.rewards.values() for e in batch.errors.values())
            raise ScoringError(f"none of {len(self.valid)} samples has a score, e.g. {first}")

    def failures(self) -> dict[str, int]:
        """How many samples failed, by reward and reason."""
        counts: dict[str, int] = {}
        for name, batch in self.rewards.items():
            for failure in batch.errors.values():
                key = f"{name}.{failure.reason}"
                counts[key] = counts.get(key, 0) + 1
        return counts

    def unreachable(self) -> list[str]:
        """Rewards that scored nothing although every failure could pass with time: an outage."""
        return [
            name
            for name, batch in self.rewards.items()
            if batch.errors
            and not batch.valid.any()
            and all(failure.retryable for failure in batch.errors.values())
        ]


def join_scores(parts: Sequence[Scores | SuiteScores]) -> Scores:
    """One after the other; the waits add up."""
    ends = np.cumsum([len(part.values) for part in parts])
    rows = [range(end - len(part.values), end) for end, part in zip(ends, parts, strict=True)]
    joined = place(int(ends[-1]), list(zip(rows, parts, strict=True)))
    joined.wait_s = sum(part.wait_s for part in parts if isinstance(part, Scores))
    return joined


def place(count: int, parts: Sequence[tuple[Sequence[int], Scores | SuiteScores]]) -> Scores:
    """`count` samples, each part's at its rows. A reward that a part lacks has neither score nor error
    there: it was not asked."""
    scores = Scores(np.full(count, np.nan), np.zeros(count, bool))
    for rows, part in parts:
        where = np.array(rows, int)
        scores.values[where], scores.valid[where] = part.values, part.valid
        for name, batch in part.rewards.items():
            _place_batch(scores.rewards.setdefault(name, ScoreBatch.empty(count)), where, batch)
    return scores


def _place_batch(whole: ScoreBatch, where: np.ndarray, batch: ScoreBatch) -> None:
    whole.values[where], whole.valid[where] = batch.values, batch.valid
    whole.errors.update({int(where[index]): error for index, error in batch.errors.items()})
    for name, values in batch.scores.items():
        whole.scores.setdefault(name, np.full(len(whole), np.nan))[where] = values
    whole.revisions |= batch.revisions


def pack(scores: Scores) -> dict[str, Any]:
    """What `join_scores` reads, as JSON."""
    return {
        "values": scores.values.tolist(),
        "valid": scores.valid.tolist(),
        "rewards": {
            name: {
                "values": batch.values.tolist(),
                "valid": batch.valid.tolist(),
                "errors": [[i, e.reason, e.message] for i, e in batch.errors.items()],
                "scores": {sub: np.asarray(v).tolist() for sub, v in batch.scores.items()},
                "revisions": sorted(batch.revisions),
            }
            for name, batch in scores.rewards.items()
        },
    }


def unpack(data: dict[str, Any]) -> Scores:
    rewards = {
        name: ScoreBatch(
            values=np.array(batch["values"], float),
            valid=np.array(batch["valid"], bool),
            errors={i: ItemFailure(Reason(r), message) for i, r, message in batch["errors"]},
            scores={sub: np.array(v, float) for sub, v in batch["scores"].items()},
            revisions=frozenset(batch["revisions"]),
        )
        for name, batch in data["rewards"].items()
    }
    return Scores(np.array(data["values"], float), np.array(data["valid"], bool), rewards)
