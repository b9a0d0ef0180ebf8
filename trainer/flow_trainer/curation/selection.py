"""Which images are kept, in which split, and why the others are not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flow_trainer.curation.ledger import Ledger
from flow_trainer.curation.likeness import Likeness
from flow_trainer.curation.rules import Rule
from flow_trainer.dataset.pairs import Pair, digest64

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Decision:
    row: int | None
    """In the ledger; None for an image that could not be read."""
    split: str | None
    """None: it is dropped."""
    reasons: tuple[str, ...] = ()


class Selection:
    """Decides on the pairs of a source in their order. The first of several that look alike is kept, of
    those that pass."""

    def __init__(
        self,
        ledger: Ledger,
        rewards: Sequence[str],
        rules: Sequence[Rule],
        *,
        distance: int | None,
        validation: float,
        test: float,
    ) -> None:
        """`distance`: bits in which the hashes of near-duplicates differ at most; None keeps them all."""
        self._ledger = ledger
        self._rewards = rewards
        self._rules = rules
        self._likeness = None if distance is None else Likeness(distance)
        self._shares = (validation, test)
        self._kept: list[str] = []
        self.counts: Counter[str] = Counter()
        """Images by what became of them: a split, or the first reason."""
        self.unscored: Counter[str] = Counter()
        """Usable images without a score, by reward."""
        self.failing: Counter[str] = Counter()
        """Images that fail a rule, whatever else they fail, by rule."""
        self.example: dict[str, str] = {}
        """One image and why it has no score, by reward."""

    def decide(self, pair: Pair) -> Decision:
        decision = self._decide(pair)
        self.counts[decision.split or _kind(decision.reasons[0])] += 1
        return decision

    def _decide(self, pair: Pair) -> Decision:
        row = self._ledger.row(pair)
        if row is None:
            why = self._ledger.unread.get(digest64(pair.key), "it changed meanwhile")
            return Decision(None, None, (f"not read: {why}",))
        why_unusable = self._ledger.why_unusable(row)
        if why_unusable is not None:
            return Decision(row, None, (why_unusable,))
        if missing := self._missing(pair, row):
            return Decision(row, None, missing)
        failed = [r for r in self._rules if not r.holds(self._ledger.score(row, r.column))]
        self.failing.update(map(str, failed))
        if failed:
            told = ((r, self._ledger.score(row, r.column)) for r in failed)
            return Decision(row, None, tuple(f"not {r}: {_shown(value)}" for r, value in told))
        if self._likeness is not None:
            phash = self._ledger.hashes[row]
            twin = self._likeness.find(phash)
            if twin is not None:
                return Decision(row, None, (f"near-duplicate: {self._kept[twin]}",))
            self._likeness.add(phash)
            self._kept.append(pair.key)
        return Decision(row, split_of(pair.prompt or "", *self._shares))

    def _missing(self, pair: Pair, row: int) -> tuple[str, ...]:
        missing = self._ledger.lacking(row, self._rewards)
        reasons = []
        for reward in missing:
            why = self._ledger.failure(row, reward) or "not asked yet"
            self.unscored[reward] += 1
            self.example.setdefault(reward, f"{pair.key}: {why}")
            reasons.append(f"no score of {reward}: {why}")
        return tuple(reasons)


def split_of(prompt: str, validation: float, test: float) -> str:
    """By a hash of the caption, so that images of one caption stay together, and that more images move
    none of those there are. The shares are expectations."""
    place = digest64(f"split/{prompt}") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _kind(reason: str) -> str:
    """A reason without what is this image's own."""
    return reason.partition(":")[0]


def _shown(value: float) -> str:
    return "no such score" if math.isnan(value) else f"{value:.4g}"
