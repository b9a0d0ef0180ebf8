"""What is prepared beside the device's work is what would have been prepared in its turn."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flow_trainer.algorithm.noise import sample_noise
from flow_trainer.errors import NonFiniteError
from flow_trainer.loop.ahead import Ahead
from flow_trainer.loop.rollout import _Leaving
from flow_trainer.models.decoding import Decoded, Decoder, channels_last

CPU = torch.device("cpu")


@pytest.mark.parametrize("beside", [False, True])
def test_noise_drawn_ahead_is_the_same_bit_for_bit(beside: bool) -> None:
    def draw(rows: range) -> tuple[Tensor, Tensor]:
        return sample_noise(7, 3, [(row // 2, row % 2) for row in rows], (2, 4, 4), 3)

    batches = [range(0, 3), range(3, 6), range(6, 7)]
    with Ahead(draw, CPU, beside=beside) as ahead:
        for number, rows in enumerate(batches):
            found = ahead.get(rows, batches[number + 1 : number + 2])
            assert all(torch.equal(*pair) for pair in zip(found, draw(rows), strict=True))


def test_what_follows_is_drawn_in_another_thread_before_it_is_asked_for() -> None:
    drawn = {key: threading.Event() for key in (1, 2)}
    threads = set()

    def draw(key: int) -> tuple[Tensor]:
        threads.add(threading.get_ident())
        drawn[key].set()
        return (torch.tensor(key),)

    with Ahead(draw, CPU, beside=True) as ahead:
        ahead.get(1, [2])
        assert drawn[2].wait(20)
        drawn[2].clear()
        assert ahead.get(2) == (torch.tensor(2),)
        assert not drawn[2].is_set()  # once
    assert threading.get_ident() not in threads


def test_an_error_while_drawing_reaches_who_asks() -> None:
    def draw(key: int) -> tuple[Tensor]:
        raise ValueError(f"no {key}")

    with Ahead(draw, CPU, beside=True) as ahead, pytest.raises(ValueError, match="no 1"):
        ahead.get(1, [2])


def test_images_are_decoded_in_chunks_and_checked() -> None:
    sizes = []

    def decode(x_0: Tensor) -> Tensor:
        sizes.append(len(x_0))
        return x_0

    x_0 = torch.linspace(-1, 1, 5 * 3 * 2 * 2).view(5, 3, 2, 2)
    decoded = Decoder(decode, CPU).start(x_0, 2)
    assert decoded.is_ready()
    assert sizes == [2, 2, 1]
    expected = (x_0 * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(decoded.images(), expected)
    x_0[3, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="VAE's weights"):
        Decoder(decode, CPU).start(x_0, 2).images()


def test_channels_last_changes_the_layout_of_convolutions_and_not_what_they_compute() -> None:
    torch.manual_seed(0)
    vae = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3))
    z = torch.randn(2, 4, 8, 8)
    plain = vae(z)
    channels_last(vae)
    weight = next(vae.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(vae(z), plain, atol=1e-5, rtol=1e-5)


class Event:
    """A CUDA event's two methods."""

    def __init__(self) -> None:
        self.is_over = False

    def query(self) -> bool:
        return self.is_over

    def synchronize(self) -> None:
        self.is_over = True


class Slow:
    """Decodes beside the next micro-batch, as on a GPU."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def decode(self, x_0: Tensor, batch: int) -> Decoded:
        self.events.append(Event())
        return Decoded(x_0.to(torch.uint8), torch.tensor(True), self.events[-1])


def test_a_micro_batch_leaves_as_soon_as_its_images_are_there_and_in_order() -> None:
    policy: Any = Slow()
    left: list[range] = []
    leaving = _Leaving(policy, 4, lambda rows, images: left.append(rows))
    leaving.add(range(0, 2), torch.ones(2, 1))
    leaving.look()
    assert left == []  # nothing waits for the device
    policy.events[0].is_over = True
    leaving.look()
    assert left == [range(0, 2)]
    leaving.add(range(2, 4), torch.ones(2, 1))
    leaving.add(range(4, 6), torch.ones(2, 1))  # at most one is on its way
    assert left == [range(0, 2), range(2, 4)]
    leaving.flush()
    assert left == [range(0, 2), range(2, 4), range(4, 6)]
