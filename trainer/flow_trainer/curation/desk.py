"""Images on their way to the rewards: so many at a time, every score written as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from flow_trainer.curation.ledger import Ledger
from flow_trainer.curation.readiness import await_ready
from flow_trainer.dataset.pairs import Pair
from flow_trainer.errors import OutageError
from flow_trainer.record.meter import Meter
from reward_api import (
    DeadlineExceeded,
    Overloaded,
    RewardClient,
    RewardError,
    ScoreBatch,
    Unavailable,
)

BATCH = 32
"""Images sent together."""
BATCHES_UNDER_WAY = 4
"""At a reward, and two more for each of its replicas after the first. More would wait for longer at
the service without it being any busier."""
OUTAGE_WAIT_S = 3600.0
ATTEMPTS = 3
"""How often a batch is sent of which not one image was scored although its service says it is ready."""
_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Ready:
    """An image that can be sent."""

    pair: Pair
    pixels: np.ndarray
    """(H, W, 3) uint8."""


@dataclass(slots=True)
class _Sent:
    reward: str
    batch: list[Ready]
    future: Future[ScoreBatch]
    attempts: int = 1


class Desk:
    def __init__(
        self,
        clients: Mapping[str, RewardClient],
        replicas: Mapping[str, int],
        ledger: Ledger,
        meter: Meter,
    ) -> None:
        self._clients = clients
        self._most = {name: BATCHES_UNDER_WAY + 2 * (n - 1) for name, n in replicas.items()}
        self._ledger = ledger
        self._meter = meter
        self._sent: list[_Sent] = []

    def send(self, reward: str, batch: Sequence[Ready]) -> None:
        """Waits while the reward has enough to do. Raises OutageError, and RewardError for what the
        caller has to change."""
        while sum(sent.reward == reward for sent in self._sent) >= self._most[reward]:
            self._settle(_CHECK_S)
        self._sent.append(_Sent(reward, list(batch), self._submit(reward, batch)))
        self._settle(0.0)

    def finish(self) -> None:
        while self._sent:
            self._settle(_CHECK_S)

    def abandon(self) -> None:
        """Writes what has come; the rest is cancelled."""
        for sent in self._sent:
            if not sent.future.cancel() and sent.future.exception() is None:
                self._write(sent, sent.future.result())
        self._sent.clear()

    def _submit(self, reward: str, batch: Sequence[Ready]) -> Future[ScoreBatch]:
        return self._clients[reward].submit(
            np.stack([ready.pixels for ready in batch]),
            [ready.pair.prompt or "" for ready in batch],
            [dict(ready.pair.metadata) for ready in batch],
            on_error="nan",
            # the same images after a kill: the service gives the answer that it has
            request_id=_request_id(reward, batch),
        )

    def _settle(self, wait_s: float) -> None:
        if wait_s and self._sent:
            wait([sent.future for sent in self._sent], wait_s, FIRST_COMPLETED)
        for sent in [sent for sent in self._sent if sent.future.done()]:
            scores = sent.future.result()
            if sent.attempts < ATTEMPTS and _is_outage(scores):
                self._await(sent.reward)
                sent.attempts += 1
                sent.future = self._submit(sent.reward, sent.batch)
                continue
            self._sent.remove(sent)
            self._write(sent, scores)

    def _write(self, sent: _Sent, scores: ScoreBatch) -> None:
        self._ledger.note_scores(sent.reward, [ready.pair.key for ready in sent.batch], scores)
        self._meter.advance(len(sent.batch))

    def _await(self, reward: str) -> None:
        """Returns when the reward takes work again. Raises OutageError, and RewardError that waiting
        cannot cure."""

        def say(error: RewardError) -> None:
            self._meter.say(f"waiting for {reward}: {error}")

        try:
            await_ready(self._clients[reward], OUTAGE_WAIT_S, say)
        except (Unavailable, Overloaded, DeadlineExceeded) as error:
            raise OutageError(
                f"{reward} is not ready after {OUTAGE_WAIT_S:.0f} s: {error}. Start the service; what is "
                "scored is kept, and the same command goes on from there"
            ) from error


def _is_outage(scores: ScoreBatch) -> bool:
    """Nothing was scored, for reasons that may pass."""
    return not scores.valid.any() and all(error.retryable for error in scores.errors.values())


def _request_id(reward: str, batch: Sequence[Ready]) -> str:
    told: list[Any] = [[ready.pair.key, ready.pair.version, ready.pixels.shape] for ready in batch]
    return "curate-" + hashlib.sha256(repr([reward, told]).encode()).hexdigest()[:24]
