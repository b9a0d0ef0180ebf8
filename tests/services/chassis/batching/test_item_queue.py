"""The queue alone: order, priorities, aging, limits, removal, waking the device thread."""

import threading
import time
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reward_services.chassis.batching.item_queue import Entry, ItemQueue
from reward_services.chassis.scorer import Sample


def _ticket() -> Any:
    return None  # the queue never looks at it


def _queue(*, max_pixels=0, max_delay_s=0.0, aging_s=10.0):
    return ItemQueue(max_pixels=max_pixels, max_delay_s=max_delay_s, aging_s=aging_s)


def _entries(count, *, first=0, side=1, key=None):
    image = np.zeros((side, side, 3), np.uint8)
    return [Entry(_ticket(), first + i, Sample(image), key) for i in range(count)]


def _take(queue, max_items):
    batch = queue.take(max_items)
    assert batch is not None
    return batch


def _indices(batch):
    return [entry.index for entry in batch]


def test_takes_what_there_is_in_order():
    queue = _queue()
    queue.put(_entries(3), 2)
    queue.put(_entries(2, first=3), 2)
    assert _indices(_take(queue, 4)) == [0, 1, 2, 3]
    assert _indices(_take(queue, 4)) == [4]
    assert len(queue) == 0


def test_lower_number_goes_first_within_the_aging_time():
    queue = _queue()
    queue.put(_entries(1, first=3), 3)
    queue.put(_entries(1, first=2), 2)
    queue.put(_entries(1, first=1), 1)
    assert _indices(_take(queue, 3)) == [1, 2, 3]


def test_aged_items_are_not_starved():
    queue = _queue(aging_s=0.01)
    queue.put(_entries(1, first=3), 3)
    time.sleep(0.03)
    queue.put(_entries(1, first=1), 1)
    assert _indices(_take(queue, 1)) == [3]


def test_only_equal_keys_share_a_batch_and_the_oldest_is_in_it():
    queue = _queue()
    queue.put(_entries(1, first=0, key="a"), 2)
    queue.put(_entries(2, first=1, key="b"), 2)
    queue.put(_entries(1, first=3, key="a"), 2)
    assert _indices(_take(queue, 8)) == [0, 3]
    assert _indices(_take(queue, 8)) == [1, 2]


def test_pixel_limit_never_blocks_a_single_big_image():
    queue = _queue(max_pixels=100)
    queue.put(_entries(1, side=20), 2)
    queue.put(_entries(3, first=1, side=7), 2)
    assert _indices(_take(queue, 8)) == [0]
    assert _indices(_take(queue, 8)) == [1, 2]
    assert _indices(_take(queue, 8)) == [3]


def test_discard_removes_only_what_is_still_queued():
    queue = _queue()
    entries = _entries(4)
    queue.put(entries, 2)
    _take(queue, 1)
    assert queue.discard(entries[:2], 2) == 1
    assert _indices(_take(queue, 8)) == [2, 3]


def test_take_waits_for_the_delay_unless_the_batch_is_full():
    queue = _queue(max_delay_s=0.05)
    queue.put(_entries(1), 2)
    started = time.monotonic()
    assert len(_take(queue, 2)) == 1
    assert time.monotonic() - started >= 0.04
    queue = _queue(max_delay_s=60)
    queue.put(_entries(2), 2)
    assert len(_take(queue, 2)) == 2


def test_close_wakes_the_waiting_thread():
    queue = _queue()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(queue.take(1)))
    thread.start()
    queue.close()
    thread.join(5)
    assert taken == [None]


@given(
    puts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=12),
    sizes=st.lists(st.integers(1, 7), min_size=1),
    discarded=st.sets(st.integers(0, 30)),
)
def test_every_item_leaves_exactly_once(puts, sizes, discarded):
    queue = _queue()
    total = 0
    lanes = []
    for priority, count in puts:
        entries = _entries(count, first=total)
        lanes.append((priority, entries))
        queue.put(entries, priority)
        total += count
    gone = set()
    for priority, entries in lanes:
        chosen = [entry for entry in entries if entry.index in discarded]
        assert queue.discard(chosen, priority) == len(chosen)
        gone |= set(_indices(chosen))
    taken = []
    step = 0
    while len(queue):
        size = sizes[step % len(sizes)]
        batch = _take(queue, size)
        assert 1 <= len(batch) <= size
        taken += _indices(batch)
        step += 1
    assert sorted(taken) == sorted(set(range(total)) - gone)
    for priority in (1, 2, 3):
        mine = {e.index for p, entries in lanes if p == priority for e in entries}
        in_order = [i for i in taken if i in mine]
        assert in_order == sorted(in_order)
