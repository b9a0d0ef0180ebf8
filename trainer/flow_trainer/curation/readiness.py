"""Waiting for a reward: as long as it loads, and not for long where nothing answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from reward_api import Reason, RewardClient, RewardError

_ASK_S = 1.0
"""However short the patience: an ask that its end cuts short would say nothing of the service."""


def await_ready(
    client: RewardClient, patience_s: float, say: Callable[[RewardError], None]
) -> None:
    """Returns when a replica takes work. A reward that says that it loads is waited for without end,
    any other reason only until `patience_s` seconds after it last said so.

    `say` is told why it goes on waiting, once for each reason in a row. Raises the RewardError that it
    gave up with, and at once one that waiting cannot cure.
    """
    last, told = time.monotonic(), None
    while True:
        try:
            return client.wait_ready(_ASK_S)
        except RewardError as error:
            now = time.monotonic()
            if error.reason is Reason.LOADING:
                last = now
            elif not error.retryable or now - last >= patience_s:
                raise
            if error.reason is not told and error.reason is not Reason.DEADLINE:
                told = error.reason
                say(error)
