"""The audit log: what was scored how, by which revision, so that a reward's drift can be traced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.scores import Scores
from reward_api import ScoreBatch


def audit_rows(
    epoch: int,
    prompts: list[Prompt],
    hashes: list[str],
    scores: Scores,
    advantages: Advantages,
) -> Iterator[dict[str, Any]]:
    """One row per sample of an epoch, prompt-major; `hashes` as `image_hash` gives them."""
    group = len(scores.values) // len(prompts)
    values = advantages.values.flatten().tolist()
    for row, image_sha256 in enumerate(hashes):
        yield {
            "epoch": epoch,
            "prompt": prompts[row // group].text,
            **({"source": source} if (source := prompts[row // group].source) else {}),
            "member": row % group,
            "score": float(scores.values[row]) if scores.valid[row] else None,
            "rewards": {
                name: _audit_reward(batch, row)
                for name, batch in scores.rewards.items()
                if batch.valid[row] or row in batch.errors
            },
            "advantage": values[row],
            "image_sha256": image_sha256,
        }


def image_hash(image: np.ndarray) -> str:
    """SHA-256 of the pixels (H, W, 3) uint8."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def _audit_reward(batch: ScoreBatch, row: int) -> dict[str, Any]:
    revision = "+".join(sorted(batch.revisions))
    if not batch.valid[row]:
        return {"error": str(batch.errors[row]), "revision": revision}
    return {
        "score": float(batch.values[row]),
        **{name: float(values[row]) for name, values in batch.scores.items()},
        "revision": revision,
    }
