"""Draws a suite's images and sends them to the rewards, as far as that is not done yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flow_trainer.evaluation.samples import Samples
from flow_trainer.evaluation.subjects import Subject
from flow_trainer.evaluation.suites import Suite
from flow_trainer.loop.rollout import micro_batches, ode_images
from flow_trainer.loop.scoring import CHECK_S, Job, Scorer
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import World
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.meter import Meter
from reward_api import ScoreBatch

WAITING = 16
"""Micro-batches that a rank has under way at the rewards before it stops to draw more: an image's
time limit begins when it is sent."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A reward that answered, and how to ask it."""

    scorer: Scorer
    key: str
    """Its name in the recipe."""
    main: str
    """The name of its main score."""


class _Outbox:
    """Micro-batches on their way to the rewards; scores are written as they come."""

    def __init__(self, samples: Samples, rewards: Mapping[str, Asked], meter: Meter) -> None:
        self._samples = samples
        self._rewards = rewards
        self._meter = meter
        self._jobs: list[tuple[str, list[int], Job]] = []

    @property
    def is_full(self) -> bool:
        return len(self._jobs) >= WAITING * max(len(self._rewards), 1)

    def send(self, reward: str, images: list[int], pixels: Tensor, prompts: list[Prompt]) -> None:
        job = self._rewards[reward].scorer.submit(range(len(images)), pixels, prompts)
        self._jobs.append((reward, images, job))

    def settle(self, wait_s: float = 0.0) -> None:
        """Writes what has come; waits up to `wait_s` for the oldest. While a reward is down
        altogether, holds until it is back. Raises OutageError."""
        if wait_s and self._jobs:
            wait(self._jobs[0][2].results.values(), wait_s)
        left = []
        for reward, images, job in self._jobs:
            if not job.done:
                left.append((reward, images, job))
                continue
            asked = self._rewards[reward]
            scores = asked.scorer.collect([job], self._hold)
            batch = scores.rewards[asked.key]
            self._samples.append(_lines(reward, asked.main, images, batch))
            self._meter.advance(len(images))
        self._jobs = left

    def finish(self, world: World) -> None:
        """Returns when no rank waits for scores any more."""
        while world.any(bool(self._jobs)):
            self.settle(CHECK_S)

    def _hold(self, down: list[str]) -> Callable[[], None]:
        self._meter.say(
            f"no scores from {', '.join(down)}: waiting for the service; what is scored is kept, and "
            "the same command goes on from there"
        )
        return lambda: None


def _lines(
    reward: str, main: str, images: Sequence[int], batch: ScoreBatch
) -> list[dict[str, Any]]:
    revision = "+".join(sorted(batch.revisions))
    lines = []
    for row, image in enumerate(images):
        line: dict[str, Any] = {"image": image, "reward": reward}
        if batch.valid[row]:
            subs = {name: float(values[row]) for name, values in batch.scores.items()}
            found = {main: float(batch.values[row]), **subs}
            finite = {name: value for name, value in found.items() if np.isfinite(value)}
            lines.append({**line, "scores": finite, "revision": revision})
        else:
            lines.append({**line, "error": str(batch.errors[row])})
    return lines


def missing_scores(samples: Samples, rewards: Sequence[str], total: int) -> dict[str, list[int]]:
    """Images without a score, by reward; those that failed before are asked for again."""
    scores = samples.read().scores
    return {
        name: [image for image in range(total) if image not in scores.get(name, {})]
        for name in rewards
    }


def measure(
    subject: Subject,
    suite: Suite,
    prompts: list[Prompt],
    samples: Samples,
    policy: Policy,
    rewards: Mapping[str, Asked],
    missing: Mapping[str, list[int]],
    meter: Meter,
    *,
    keep_images: bool,
    world: World,
) -> None:
    """Fills `samples` with the `missing` scores; all ranks call together.

    Micro-batches are cut the same way whatever is done already, because an image depends, by
    rounding, on those drawn beside it.
    """
    each = suite.images_per_prompt
    lacking = {name: set(images) for name, images in missing.items()}
    batches = list(micro_batches(len(prompts) * each, subject.recipe.sampling.micro_batch))
    outbox = _Outbox(samples, rewards, meter)

    def wanted(rows: range) -> bool:
        return any(not images.isdisjoint(rows) for images in lacking.values())

    for turn in world.turns(batches, wanted):
        while world.any(outbox.is_full):
            outbox.settle(CHECK_S)
        if not turn.rows:
            continue
        keys = [divmod(row, each) for row in turn.rows]
        pixels = None if world.lockstep else _stored(samples, keys)
        if pixels is None:
            pixels = _draw(subject, policy, prompts, keys)
        if not turn.counts:
            continue
        if keep_images:
            samples.keep_images(keys, pixels.numpy())
        for name, images in lacking.items():
            if chosen := [n for n, row in enumerate(turn.rows) if row in images]:
                asked = [prompts[keys[n][0]] for n in chosen]
                outbox.send(name, [turn.rows[n] for n in chosen], pixels[chosen], asked)
        outbox.settle()
    outbox.finish(world)


def _draw(
    subject: Subject, policy: Policy, prompts: list[Prompt], keys: list[tuple[int, int]]
) -> Tensor:
    sigmas = policy.sigmas(subject.steps).to(policy.device)
    conditioning = policy.encode([prompts[prompt].text for prompt, _ in keys])
    return ode_images(policy, subject.recipe, keys, conditioning, sigmas)


def _stored(samples: Samples, keys: list[tuple[int, int]]) -> Tensor | None:
    """(B, H, W, 3) uint8 from an earlier run that kept its images; None unless all are there."""
    paths = [samples.image_path(*key) for key in keys]
    if not all(path.exists() for path in paths):
        return None
    return torch.from_numpy(np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths]))
