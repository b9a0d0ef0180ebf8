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
    """(N,) bool: every reward scored the sample."""
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
            if len(batch.values)
            and not batch.valid.any()
            and all(failure.retryable for failure in batch.errors.values())
        ]


def join_scores(parts: Sequence[Scores | SuiteScores]) -> Scores:
    """One after the other; the waits add up."""
    return Scores(
        values=np.concatenate([part.values for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        rewards={
            name: _join_batches([part.rewards[name] for part in parts]) for name in parts[0].rewards
        },
        wait_s=sum(part.wait_s for part in parts if isinstance(part, Scores)),
    )


def _join_batches(batches: Sequence[ScoreBatch]) -> ScoreBatch:
    """One reward's micro-batches as one batch, in order."""
    joined = ScoreBatch.empty(sum(map(len, batches)))
    start = 0
    for batch in batches:
        rows = slice(start, start + len(batch))
        joined.values[rows], joined.valid[rows] = batch.values, batch.valid
        joined.errors.update({start + index: error for index, error in batch.errors.items()})
        for name, values in batch.scores.items():
            joined.scores.setdefault(name, np.full(len(joined), np.nan))[rows] = values
        joined.revisions |= batch.revisions
        start = rows.stop
    return joined


def pack(scores: SuiteScores) -> dict[str, Any]:
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
