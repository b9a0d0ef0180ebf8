"""The first pass over a source: every image that lacks a score is read, cropped and sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from flow_trainer.curation.desk import BATCH, Desk, Ready
from flow_trainer.curation.ledger import NO_CAPTION, Ledger, seen, unusable
from flow_trainer.curation.likeness import perceptual_hash
from flow_trainer.dataset.pairs import Pair, digest64
from flow_trainer.dataset.picture import Picture, Unusable, read_cropped
from flow_trainer.record.meter import Meter

_AHEAD = 2
"""Batches that are read while others are being sent."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Crop:
    """The size in which images are scored and written."""

    width: int
    height: int
    upscale: bool = False

    def read(self, pair: Pair) -> Picture:
        """Raises OSError, Unusable."""
        return read_cropped(pair.read(), self.width, self.height, upscale=self.upscale)


def gather(
    pairs: Iterable[Pair],
    rewards: Sequence[str],
    crop: Crop,
    ledger: Ledger,
    desk: Desk,
    meter: Meter,
    pool: ThreadPoolExecutor,
) -> None:
    """Returns when every usable image has a score, or a reason why not, under every reward.

    Batches are cut at the same places whatever is done already, so that one that a kill lost is asked
    for again in the same words.
    """

    def begin(batch: list[Pair]) -> list[tuple[Pair, Future[tuple[Picture, int]]]]:
        started = []
        for pair in batch:
            row = ledger.row(pair)
            lacks = row is None or (
                ledger.why_unusable(row) is None and bool(ledger.lacking(row, rewards))
            )
            if not lacks:
                meter.advance(len(rewards))
            elif pair.prompt is None:
                ledger.note_images([unusable(pair, NO_CAPTION)])
                meter.advance(len(rewards))
            else:
                started.append((pair, pool.submit(_read, pair, crop)))
        return started

    waiting: deque[list[tuple[Pair, Future[tuple[Picture, int]]]]] = deque()
    for batch in batches(pairs, BATCH):
        waiting.append(begin(batch))
        if len(waiting) > _AHEAD:
            _send(waiting.popleft(), rewards, ledger, desk, meter)
    while waiting:
        _send(waiting.popleft(), rewards, ledger, desk, meter)
    desk.finish()


def _read(pair: Pair, crop: Crop) -> tuple[Picture, int]:
    picture = crop.read(pair)
    return picture, perceptual_hash(picture.pixels)


def _send(
    read: Sequence[tuple[Pair, Future[tuple[Picture, int]]]],
    rewards: Sequence[str],
    ledger: Ledger,
    desk: Desk,
    meter: Meter,
) -> None:
    ready, lines = [], []
    for pair, future in read:
        try:
            picture, phash = future.result()
        except Unusable as error:
            lines.append(unusable(pair, str(error)))
            meter.advance(len(rewards))
            continue
        except OSError as error:  # not written down: it may be readable the next time
            ledger.unread[digest64(pair.key)] = error.strerror or str(error)
            meter.advance(len(rewards))
            continue
        ready.append(Ready(pair, picture.pixels))
        if ledger.row(pair) is None:
            lines.append(seen(pair, picture.size, phash))
    ledger.note_images(lines)
    lacking = {one.pair.key: ledger.lacking(_row(ledger, one.pair), rewards) for one in ready}
    for reward in rewards:
        chosen = [one for one in ready if reward in lacking[one.pair.key]]
        meter.advance(len(ready) - len(chosen))
        if chosen:
            desk.send(reward, chosen)


def _row(ledger: Ledger, pair: Pair) -> int:
    row = ledger.row(pair)
    assert row is not None, pair.key
    return row


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def ordered(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Iterator[tuple[_Item, _Result]]:
    """Every item with its result, in order; at most `ahead` are under way or done before their turn."""
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) >= ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()
