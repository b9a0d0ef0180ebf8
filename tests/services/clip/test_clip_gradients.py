"""Gradients with respect to pixels: against finite differences of the whole reward, and against
autograd through a model in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_checkpoints import tile_image, write_clip, write_head, write_hps
from imagereward_checkpoint import write_imagereward, write_vocabulary
from reward_api.errors import ItemFailure
from reward_api.wire.gradients import unpack_gradient
from reward_services.aesthetic.scorer import SCORER as AESTHETIC
from reward_services.chassis.scorer import Sample, Scorer
from reward_services.clip.gradients import resized_crop
from reward_services.clip.pixels import CLIP_MEAN, CLIP_STD
from reward_services.clipscore.scorer import SCORER as CLIPSCORE
from reward_services.hpsv2.scorer import SCORER as HPSV2
from reward_services.imagereward.scorer import SCORER as IMAGEREWARD
from reward_services.jpeg.scorer import SCORER as JPEG
from reward_services.pickscore.scorer import SCORER as PICKSCORE
from scoring import values

PROMPTS = ["a red cat", "a sign"]


def checkpoint(kind: type[Scorer], folder: Path) -> dict[str, str]:
    """Settings of a reward on a tiny checkpoint with random weights."""
    clip = partial(write_clip, folder / "clip", activation="quick_gelu")
    if kind is AESTHETIC:
        head = write_head(folder / "head.pth")
        weights = clip(projection=768)
        return {"weights": str(weights), "head": str(head), "head_sha256": "any"}
    if kind is HPSV2:
        return {"weights": str(write_hps(folder / "hps"))}
    if kind is IMAGEREWARD:
        write_vocabulary(write_imagereward(folder))
        return {"weights": str(folder), "tokenizer": str(folder)}
    return {"weights": str(clip())}


REWARDS = {k.__name__: k for k in (PICKSCORE, CLIPSCORE, HPSV2, AESTHETIC, IMAGEREWARD)}


@pytest.fixture(scope="module", params=REWARDS)
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    kind = REWARDS[request.param]
    scorer = kind(kind.Settings(**checkpoint(kind, tmp_path_factory.mktemp(request.param))))
    scorer.load("cpu")
    return scorer


def soft(width: int, height: int, k: int) -> np.ndarray:
    """A picture away from black and white, so that small changes are not cut off."""
    return tile_image(width, height, k) // 2 + 64


def gradients(scorer: Scorer, images: list[np.ndarray]) -> tuple[list[float], list[np.ndarray]]:
    samples = [Sample(image, p) for image, p in zip(images, PROMPTS, strict=False)]
    outcomes = scorer.score_gradient([replace(s, prepared=scorer.prepare(s)) for s in samples])
    found: list[float] = []
    arrays: list[np.ndarray] = []
    for outcome in outcomes:
        assert not isinstance(outcome, ItemFailure)
        assert outcome.gradient is not None
        found.append(outcome.value)
        arrays.append(unpack_gradient(outcome.gradient))
    return found, arrays


def test_scores_beside_gradients_are_those_of_score(scorer: Scorer) -> None:
    images = [soft(300, 260, 1), soft(224, 224, 2)]
    found, arrays = gradients(scorer, images)
    assert found == pytest.approx(values(scorer, images, PROMPTS), abs=2e-6)
    assert [a.shape for a in arrays] == [(260, 300, 3), (224, 224, 3)]
    alone = gradients(scorer, images[:1])[1][0]
    np.testing.assert_allclose(alone, arrays[0], atol=2e-3 * np.abs(alone).max())


@pytest.mark.parametrize("size", [(224, 224), (300, 260), (150, 401)])
def test_gradients_equal_finite_differences(scorer: Scorer, size: tuple[int, int]) -> None:
    width, height = size
    image = soft(width, height, 3)
    (gradient,) = gradients(scorer, [image])[1]
    y, x = np.mgrid[:height, :width]
    errors = []
    for fx, fy, phase in ((1, 2, 0.3), (3, 1, 1.1), (2, 5, 2.0)):
        wave = np.sin(2 * np.pi * (fx * x / width + fy * y / height) + phase)
        step = np.round(6 * wave[..., None] * [1, -0.7, 0.5]).astype(int)
        ends = [(image + sign * step).astype(np.uint8) for sign in (1, -1)]
        plus, minus = values(scorer, ends, [PROMPTS[0]] * 2)
        along = float((gradient * step).sum() / 255)
        errors.append((plus - minus) / 2 - along)
    scale = np.abs(gradient).sum() * 6 / 255
    assert scale > 0
    assert np.abs(errors).max() < 0.005 * scale


def test_a_picture_of_the_networks_size_equals_autograd(tmp_path: Path) -> None:
    """At 224 x 224 nothing is resized, so PickScore is one expression of torch."""
    scorer = PICKSCORE(PICKSCORE.Settings(**checkpoint(PICKSCORE, tmp_path)))
    scorer.load("cpu")
    image = soft(224, 224, 4)
    clip = scorer._clip
    pixels = torch.from_numpy(image / 255).requires_grad_()
    normal = (pixels - torch.from_numpy(CLIP_MEAN)) / torch.from_numpy(CLIP_STD)
    inputs = normal.permute(2, 0, 1)[None].float()
    cosine = clip._cosines(inputs, PROMPTS[:1])
    (clip.scale / 26 * cosine).backward()
    (gradient,) = gradients(scorer, [image])[1]
    assert pixels.grad is not None
    expected = pixels.grad.numpy()
    np.testing.assert_allclose(gradient, expected, atol=6e-4 * np.abs(expected).max())


def test_float16_towers_have_gradients(tmp_path: Path) -> None:
    settings = checkpoint(PICKSCORE, tmp_path)
    exact, half = (
        PICKSCORE(PICKSCORE.Settings.model_validate({**settings, "dtype": dtype}))
        for dtype in ("float32", "float16")
    )
    for scorer in (exact, half):
        scorer.load("cpu")
    images = [soft(256, 224, 5)]
    (a,), (b,) = gradients(exact, images)[1], gradients(half, images)[1]
    assert float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)) > 0.99
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=0.05)


def test_only_differentiable_rewards_have_gradients(scorer: Scorer) -> None:
    assert scorer.has_gradient
    assert not JPEG(JPEG.Settings()).has_gradient


@pytest.mark.parametrize("crop", ["floor", "round"])
def test_the_crop_is_the_preprocessings(crop: str) -> None:
    from reward_services.clip.pixels import clip_crop, clip_normalise

    image = soft(301, 263, 6)
    made = clip_normalise([clip_crop(image, crop=crop)])[0]  # pyright: ignore[reportArgumentType]
    floats = torch.from_numpy(image / 255).permute(2, 0, 1)[None].float()
    affine: Callable[[Tensor], Tensor] = partial(resized_crop, crop=crop)  # pyright: ignore
    offset = torch.from_numpy(CLIP_MEAN / CLIP_STD)[:, None, None]
    difference = np.abs((affine(floats)[0] - offset).numpy() - made)
    assert difference.max() < 2.1 / 255 / CLIP_STD.min()
