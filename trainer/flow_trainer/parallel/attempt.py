"""Meeting the other ranks of this start, and of no earlier one."""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

MEET_TIMEOUT_S = 1800.0
POLL_S = 0.05


def attempt_store() -> tuple[dist.Store, int, int]:
    """(store of this start alone, rank, size), as torchrun's environment says.

    torchrun keeps one store over restarts, and does not number them alike on all nodes: addresses of
    processes that are dead are still in it, and a rank that reads one of them connects to nobody.
    """
    store, rank, size = next(dist.rendezvous("env://"))
    return dist.PrefixStore(attempt_name(store, rank, size), store), rank, size


def attempt_name(store: dist.Store, rank: int, size: int) -> str:
    """A name that all ranks get and that was never used before: the first rank makes it up, and tells
    it to each under a key that this rank has made up. Raises TimeoutError."""
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"ready/{name}/{rank}", "")
        return name
    deadline = time.monotonic() + MEET_TIMEOUT_S
    others = range(1, size)
    while not store.check([f"ready/{own}/{other}" for other in others]):
        for other in others:
            if store.check(
                [f"hello/{other}"]
            ):  # may be a dead process's: answering it does no harm
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"not all of {size} processes have arrived in {MEET_TIMEOUT_S:.0f} s"
            )
        time.sleep(POLL_S)
    return own
