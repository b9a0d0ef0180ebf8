"""The watch's statistics and bands, on numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flow_trainer.record.watch import (
    Watch,
    embedding_diversity,
    group_diversity,
    image_statistics,
    latent_norms,
    thumbnails,
    watch_from,
)


def test_statistics_of_plain_images() -> None:
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    images[1] = 255
    images[2, :, ::2, 0] = 255  # red stripes on black
    brightness, saturation, sharpness = image_statistics(images).T.tolist()
    assert brightness == pytest.approx([0, 1, 0.299 / 2])
    assert saturation == pytest.approx([0, 0, 0.5])
    assert sharpness == pytest.approx([0, 0, 0.299 / 2])


def test_diversity_is_zero_for_equal_members_and_large_for_black_and_white() -> None:
    same = torch.full((4, 32, 32, 3), 90, dtype=torch.uint8)
    assert group_diversity(thumbnails(same), 4) == 0
    mixed = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 8, 8, 3)
    assert group_diversity(thumbnails(mixed), 4) == pytest.approx(0.5)
    assert group_diversity(thumbnails(mixed), 2) == pytest.approx(0.5)


def test_diversity_of_embeddings_is_one_less_their_cosines() -> None:
    vectors = torch.nn.functional.normalize(
        torch.randn(6, 32, generator=torch.Generator().manual_seed(1)), dim=1
    )
    groups = torch.tensor([4, 4, 7, 4, 7, 9])  # the last has one member, and no pair
    cosines = vectors @ vectors.T
    one = 1 - (cosines[0, 1] + cosines[0, 3] + cosines[1, 3]) / 3
    other = 1 - cosines[2, 4]
    assert embedding_diversity(vectors, groups) == pytest.approx(float((one + other) / 2))
    assert embedding_diversity(vectors[:1].repeat(3, 1), torch.zeros(3)) == pytest.approx(
        0, abs=1e-6
    )
    assert embedding_diversity(vectors[:2], torch.tensor([0, 1])) is None


def test_latent_norm_is_one_for_noise() -> None:
    x_0 = torch.randn(2, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    assert latent_norms(x_0).tolist() == pytest.approx([1, 1], abs=0.01)


def test_an_alarm_rings_once_until_the_quantity_is_back() -> None:
    watch = Watch(band_epochs=4)
    values = [0.5] * 4 + [0.3] * 6 + [0.5] * 4 + [0.7] * 3
    rang = [
        (alarm.epoch, alarm.quantity)
        for epoch, value in enumerate(values, 1)
        for alarm in watch.see(epoch, {"brightness": value})
    ]
    # the mean of three: epochs 5 to 7, then 14 to 16
    assert rang == [(7, "brightness"), (16, "brightness")]


def rings(values: list[float], quantity: str = "brightness", band_epochs: int = 4) -> list[int]:
    """The epochs at which a series rings."""
    watch = Watch(band_epochs)
    seen = [watch.see(epoch, {quantity: value}) for epoch, value in enumerate(values, 1)]
    return [alarm.epoch for alarms in seen for alarm in alarms]


def test_a_quantity_that_hovers_at_the_edge_rings_once() -> None:
    """The band of brightness is 0.4 to 0.6; it is back at 0.55."""
    hovers = [0.63, 0.58, 0.64, 0.57] * 6
    assert rings([0.5] * 4 + hovers) == [7]
    assert rings([0.5] * 4 + hovers + [0.5] * 4 + hovers) == [7, 35]
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 0.02
    assert len(rings([0.5] * 4 + (noise + 0.61).tolist())) == 1


def test_a_second_alarm_needs_a_way_back() -> None:
    near = [0.7] * 3 + [0.56] * 4 + [0.7] * 3
    assert rings([0.5] * 4 + near) == [7]
    assert rings([0.5] * 4 + [0.7] * 3 + [0.54] * 4 + [0.7] * 3) == [7, 13]


def test_the_other_side_of_the_band_rings_by_itself() -> None:
    assert rings([0.5] * 4 + [0.9] * 3 + [0.0] * 4) == [7, 9]


def test_a_band_without_width_rings_once() -> None:
    """No group had equal rewards, and KL is 0 until the first update."""
    assert rings([0.0] * 4 + [0.1, 0.2, 0.3] * 3, "kl") == [7]


def test_a_monitor_that_stays_down_rings_once_whatever_the_reward_does() -> None:
    watch = Watch(band_epochs=3, monitors=("monitor.x",))
    series = [(1.0, 5.0)] * 3 + [(2.0, 4.0), (2.0, 4.0), (2.0, 4.0), *[(0.9, 4.0), (2.1, 4.0)] * 6]
    series += [(2.0, 5.0)] * 3 + [(2.0, 4.0)] * 3
    rang = [
        alarm.epoch
        for epoch, (reward, monitor) in enumerate(series, 1)
        for alarm in watch.see(epoch, {"reward": reward, "monitor.x": monitor})
    ]
    assert rang == [6, 22]


def test_a_band_is_as_wide_as_its_epochs_vary() -> None:
    watch = Watch(band_epochs=4)
    for epoch, value in enumerate([0.2, 0.6, 0.2, 0.6], 1):
        watch.see(epoch, {"brightness": value})
    low, high = watch.band("brightness") or (math.nan, math.nan)
    assert low < 0 < 1 < high


def test_falling_reward_and_falling_monitor_is_not_hacking() -> None:
    watch = Watch(band_epochs=3, monitors=("monitor.x",))
    falling = [(1.0, 5.0)] * 3 + [(0.5, 4.0)] * 3
    assert not any(
        watch.see(epoch, {"reward": reward, "monitor.x": monitor})
        for epoch, (reward, monitor) in enumerate(falling, 1)
    )
    (alarm,) = [
        alarm
        for epoch in (7, 8, 9)
        for alarm in watch.see(epoch, {"reward": 2.0, "monitor.x": 4.0})
    ]
    assert "x fell from 5 to 4 while the trained reward rose from 1 to" in alarm.message


def test_a_resumed_watch_knows_what_rang() -> None:
    rows = [
        {"kind": "train", "epoch": epoch, "brightness": value}
        for epoch, value in enumerate([0.5, 0.5, 0.2, 0.2, 0.2], 1)
    ]
    watch = watch_from([*rows, {"kind": "alarm", "epoch": 5}], Watch(band_epochs=2))
    assert watch.ringing == {"brightness": -1}
    assert watch.see(6, {"brightness": 0.2}) == []
