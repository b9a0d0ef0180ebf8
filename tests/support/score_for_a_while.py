"""Scores images from four threads for some seconds: `score_for_a_while.py URL SECONDS`.

Prints JSON with the number of scored items. The first lost call ends it with a traceback and 1.
Needs the client only, so that it also runs inside a service's image.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reward_api import RewardClient


def score(client: RewardClient, seed: int, seconds: float) -> int:
    """Raises the client's error when a call is lost in spite of its retries."""
    images = np.random.default_rng(seed).integers(0, 256, (4, 32, 64, 3), np.uint8)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        batch = client.score(images, ['the word "open"'] * len(images))
        assert batch.valid.all()
        count += len(images)
    return count


def main(url: str, seconds: float) -> None:
    with RewardClient(url, timeout_s=60) as client, ThreadPoolExecutor(4) as pool:
        counts = pool.map(lambda seed: score(client, seed, seconds), range(4))
        sys.stdout.write(json.dumps({"items": sum(counts)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
