"""The watch's statistics and bands, on numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flow_trainer.record.watch import (
    Watch,
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
    assert watch.ringing == {"brightness"}
    assert watch.see(6, {"brightness": 0.2}) == []
