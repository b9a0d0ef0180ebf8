"""The small mechanisms of pool.py: how often to try again, whom to leave alone, when to hedge.

Times are seconds of a monotonic clock, passed in, so that every rule can be tested without waiting.
"""

from __future__ import annotations

import math
import random
from collections import deque

_BREAK_AFTER = 5
_BREAK_S, _MAX_BREAK_S = 1.0, 15.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 5.0
_HEDGE_SAMPLES, _MIN_HEDGE_S = 20, 0.05


class Budget:
    """Allows an extra attempt per `1 / ratio` calls, beyond a floor of `burst` attempts that
    refills by `per_s` a second: extra attempts can repair failures, never multiply an overload."""

    def __init__(self, ratio: float, *, burst: float, per_s: float = 0.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self._per_s = per_s
        self._tokens = burst
        self._refilled_at = 0.0

    def note_call(self) -> None:
        self._tokens = min(self._tokens + self._ratio, self._burst)

    def take(self, now: float) -> float:
        """Takes an attempt and returns 0.0, or takes nothing and returns the seconds to wait
        (infinite: only further calls bring one)."""
        refill = self._per_s * (now - self._refilled_at)
        self._tokens = min(self._tokens + refill, self._burst)
        self._refilled_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s if self._per_s else math.inf


class Breaker:
    """Leaves a replica alone after five failures in a row: for 1 s, then for twice as long after
    each probe that fails, up to 15 s. One call at a time probes; its success closes the breaker."""

    def __init__(self) -> None:
        self.failures = 0
        self._open_s = 0.0
        self._open_until = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        return self._open_s > 0.0

    def free_at(self, now: float) -> float:
        """When the replica may be called; `now` or earlier means at once."""
        if self.is_open and self._is_probing:
            return max(self._open_until, now + 0.05)
        return self._open_until

    def start(self) -> bool:
        """A call begins. True: it is the probe, and `end_probe` must follow."""
        if self.is_open:
            self._is_probing = True
        return self.is_open

    def end_probe(self) -> None:
        self._is_probing = False

    def success(self) -> None:
        self.failures = 0
        self._open_s = self._open_until = 0.0

    def failure(self, now: float) -> None:
        self.failures += 1
        # Calls that were under way when it opened tell nothing new.
        if self.failures >= _BREAK_AFTER and now >= self._open_until:
            self._open_s = min(max(_BREAK_S, 2 * self._open_s), _MAX_BREAK_S)
            self._open_until = now + self._open_s


class Latencies:
    """Durations of the latest successful calls."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=100)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def hedge_delay_s(self) -> float | None:
        """Twice the 95th percentile; None while there is too little experience."""
        if len(self._seconds) < _HEDGE_SAMPLES:
            return None
        ordered = sorted(self._seconds)
        return max(2 * ordered[int(0.95 * (len(ordered) - 1))], _MIN_HEDGE_S)


def backoff_s(attempt: int) -> float:
    """Full jitter: uniform between zero and 0.1 s x 2**attempt, at most 5 s."""
    return random.uniform(0.0, min(_BACKOFF_S * 2 ** min(attempt, 16), _MAX_BACKOFF_S))
