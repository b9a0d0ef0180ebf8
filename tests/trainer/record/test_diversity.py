"""How far the images of one prompt are apart."""

from __future__ import annotations

import numpy as np
import pytest

from flow_trainer.record.diversity import image_diversity

DARK, GREY, LIGHT = (np.full((2, 3, 3), value, np.uint8) for value in (0, 51, 255))


def test_it_is_the_mean_over_pairs_then_over_prompts() -> None:
    images = np.stack([DARK, DARK, LIGHT, GREY, LIGHT])
    # a: pairs of 0, 1 and 1; b: one of 0.8
    assert image_diversity(images, ["a", "a", "a", "b", "b"]) == pytest.approx((2 / 3 + 0.8) / 2)
    # the order does not matter
    assert image_diversity(images[[3, 0, 4, 1, 2]], ["b", "a", "b", "a", "a"]) == pytest.approx(
        (2 / 3 + 0.8) / 2
    )


def test_differences_of_pixels_are_squared_before_their_mean() -> None:
    half = DARK.copy()
    half[0] = 255
    assert image_diversity(np.stack([DARK, half]), ["a", "a"]) == pytest.approx(0.5**0.5)


def test_a_prompt_with_one_image_does_not_count_and_one_of_several_must_be_there() -> None:
    images = np.stack([DARK, LIGHT, GREY])
    assert image_diversity(images, ["a", "a", "b"]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one data point"):
        image_diversity(images, ["a", "b", "c"])
