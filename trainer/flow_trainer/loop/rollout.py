"""Sampling: prompts to images, stochastic with trajectories for training, plain ODE for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import DYNAMICS, Transition
from flow_trainer.algorithm.noise import evaluation_noise, sample_noise
from flow_trainer.algorithm.solver import ORDERS, OdeSolver
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.ahead import Ahead
from flow_trainer.loop.finite import FiniteWatch
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.decoding import Decoded
from flow_trainer.models.policy import Policy
from flow_trainer.models.prompt_rows import PromptRows
from flow_trainer.parallel.world import ALONE, Turn, World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt

OnImages = Callable[[range, Tensor], None]
"""Called with the rows of a decoded micro-batch and its images (b, H, W, 3) uint8."""


def shares(recipe: Recipe, count: int) -> Iterator[list[range]]:
    """The micro-batches of each update's share of an epoch's first `count` samples. Rollout and
    replay are cut alike, because a log-probability depends, by rounding, on its batch."""
    for share in micro_batches(count, recipe.share):
        batches = micro_batches(len(share), recipe.sampling.micro_batch)
        yield [range(share.start + b.start, share.start + b.stop) for b in batches]


def transition(recipe: Recipe, sigmas: Tensor, steps: Tensor, x: Tensor, v: Tensor) -> Transition:
    """The stochastic step p(x_next | x) of each row under velocity v.

    The one place where a transition is made: rollout samples from it and the loss scores with it,
    so that the ratio of an unchanged policy is 1. `steps` (B,) int64 index `sigmas` (T + 1,).
    """
    step = DYNAMICS[recipe.sampling.dynamics]
    noise_level = recipe.sampling.noise_level
    return step(x, v, sigmas[steps], sigmas[steps + 1], noise_level, sigmas[1])


@torch.no_grad()
def rollout(
    policy: Policy,
    recipe: Recipe,
    epoch: int,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    on_images: OnImages,
    world: World = ALONE,
    before_turn: Callable[[], None] = lambda: None,
    chosen: Sequence[int] | None = None,
) -> Trajectories:
    """Samples `group_size` images for each prompt with the epoch's stochastic window; of several
    ranks, each its own micro-batches. `indices` are the prompts' positions in the prompt file: noise
    is keyed by (seed, epoch, index, member), so results do not depend on how the epoch is split into
    micro-batches. `on_images` gets every micro-batch as soon as it is decoded. `before_turn` is called
    equally often on every rank. `chosen` says which member each sample is, prompt by prompt, where
    that is not 0, 1, ...
    """
    sampling, window, noisy = recipe.sampling, recipe.window(epoch), recipe.noisy_steps(epoch)
    sigmas = _schedule(policy, recipe, window)
    members = _members(indices, sampling.group_size, chosen)
    done: list[int] = []
    finished, latents, log_probs, means = [], [], [], []
    turns = [turn for share in shares(recipe, len(members)) for turn in world.turns(share)]
    texts = _prompt_rows(policy, prompts, sampling.group_size, turns)
    leaving = _Leaving(policy, sampling.decode_batch, on_images)

    def draw(rows: range) -> tuple[Tensor, Tensor]:
        keys = [members[row] for row in rows]
        shape, same = policy.latent_shape, sampling.same_latent
        return sample_noise(recipe.seed, epoch, keys, shape, len(noisy), same_latent=same)

    with Ahead(draw, policy.device) as ahead:
        for number, turn in enumerate(turns):
            before_turn()
            rows = turn.rows
            if not rows:
                continue
            x, noise = ahead.get(rows, [t.rows for t in turns[number + 1 : number + 2] if t.rows])
            batch = texts[prompts_of(rows, sampling.group_size)]
            kept, densities, centres = [], [], []
            watch = FiniteWatch(rows, epoch)
            ode = OdeSolver(ORDERS.get(sampling.dynamics, 1))
            for i in range(len(sigmas) - 1):
                steps = torch.full((len(rows),), i, device=policy.device)
                v = policy.velocity(x, sigmas[steps], batch)
                watch.see(f"velocity at step {i}", v)
                if i in window and not kept:
                    kept.append(x)
                if i in noisy:
                    step = transition(recipe, sigmas, steps, x, v)
                    x = step.sample(noise[:, i - noisy.start])
                    if i in window:
                        kept.append(x)
                        densities.append(step.log_prob(x))
                        watch.see(f"log-probability at step {i}", densities[-1])
                        centres.append(step.mean)
                else:
                    x = ode.step(x, v, sigmas[i], sigmas[i + 1])
                leaving.look()
            if not turn.counts:
                continue
            done += rows
            finished.append(x)
            latents.append(_stack(kept, x))
            log_probs.append(_stack(densities, x))
            if recipe.update.needs_old_means:
                means.append(_stack(centres, x))
            leaving.add(rows, x, watch)
    leaving.flush()
    return Trajectories(
        done,
        window,
        sigmas,
        [members[row] for row in done],
        x_0=torch.cat(finished),
        latents=torch.cat(latents),
        log_probs=torch.cat(log_probs),
        means=torch.cat(means) if means else None,
    )


def _schedule(policy: Policy, recipe: Recipe, window: range) -> Tensor:
    """(T + 1,) noise levels of an epoch's samples on the policy's device; under refl the window's last
    step goes straight to 0."""
    sigmas = policy.sigmas(recipe.sampling.num_steps).to(policy.device)
    if recipe.update.trains_on != "gradients":
        return sigmas
    return torch.cat([sigmas[: window.stop], sigmas.new_zeros(1)])


@torch.no_grad()
def generate(
    policy: Policy,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    num_steps: int,
    images_per_prompt: int,
    on_images: OnImages,
    world: World = ALONE,
) -> None:
    """ODE sampling for evaluation: the same noise at every call, whatever the epoch; of
    several ranks, each its own micro-batches."""
    sigmas = policy.sigmas(num_steps).to(policy.device)
    members = [(p, g) for p in range(len(prompts)) for g in range(images_per_prompt)]
    turns = list(world.turns(list(micro_batches(len(members), recipe.sampling.micro_batch))))
    texts = _prompt_rows(policy, prompts, images_per_prompt, turns)
    leaving = _Leaving(policy, recipe.sampling.decode_batch, on_images)

    def draw(rows: range) -> tuple[Tensor]:
        keys = [members[row] for row in rows]
        return (evaluation_noise(recipe.seed, keys, policy.latent_shape),)

    with Ahead(draw, policy.device) as ahead:
        for number, turn in enumerate(turns):
            rows = turn.rows
            if not rows:
                continue
            (x,) = ahead.get(rows, [t.rows for t in turns[number + 1 : number + 2] if t.rows])
            x = _along_ode(
                policy, recipe, x, texts[prompts_of(rows, images_per_prompt)], sigmas, leaving.look
            )
            if turn.counts:
                leaving.add(rows, x)
    leaving.flush()


@torch.no_grad()
def ode_images(
    policy: Policy,
    recipe: Recipe,
    keys: Sequence[tuple[int, int]],
    conditioning: Conditioning,
    sigmas: Tensor,
) -> Tensor:
    """Images (B, H, W, 3) uint8 of one micro-batch, keyed by (prompt index, member), along the ODE;
    `conditioning` has a row for each key."""
    x = evaluation_noise(recipe.seed, keys, policy.latent_shape).to(policy.device)
    x = _along_ode(policy, recipe, x, conditioning, sigmas)
    return policy.decode(x, recipe.sampling.decode_batch).images()


def _along_ode(
    policy: Policy,
    recipe: Recipe,
    x: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    ode = OdeSolver(ORDERS[recipe.evaluation.dynamics])
    for i in range(len(sigmas) - 1):
        steps = torch.full((len(x),), i, device=policy.device)
        v = policy.velocity(x, sigmas[steps], conditioning)
        x = ode.step(x, v, sigmas[i], sigmas[i + 1])
        after_step()
    return x


def _members(
    indices: Sequence[int], group_size: int, chosen: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Prompt index and member of every sample, prompt by prompt."""
    numbers = chosen or list(range(group_size)) * len(indices)
    return [(indices[row // group_size], member) for row, member in enumerate(numbers)]


class _Leaving:
    """Micro-batches on their way out: one is decoded while the next is sampled, and leaves as soon as its
    images are on the host."""

    def __init__(self, policy: Policy, decode_batch: int, on_images: OnImages) -> None:
        self._policy = policy
        self._decode_batch = decode_batch
        self._on_images = on_images
        self._waiting: list[tuple[range, Decoded]] = []
        self._watches: list[FiniteWatch] = []

    def add(self, rows: range, x_0: Tensor, watch: FiniteWatch | None = None) -> None:
        """Begins to decode. `watch` is asked when images are not finite, and at the end: asking it
        sooner would wait for the device."""
        self._waiting.append((rows, self._policy.decode(x_0, self._decode_batch)))
        if watch is not None:
            self._watches.append(watch)
        self.look()
        while len(self._waiting) > 1:
            self._leave()

    def look(self) -> None:
        while self._waiting and self._waiting[0][1].is_ready():
            self._leave()

    def flush(self) -> None:
        while self._waiting:
            self._leave()
        self._check()

    def _leave(self) -> None:
        rows, decoded = self._waiting.pop(0)
        if not decoded.is_finite():
            self._check()
        self._on_images(rows, decoded.images())

    def _check(self) -> None:
        for watch in self._watches:
            watch.check()


def _prompt_rows(
    policy: Policy, prompts: Sequence[Prompt], images_per_prompt: int, turns: Sequence[Turn]
) -> PromptRows:
    """Of the prompts, those of this rank's turns are looked up, in that order."""
    order = [row // images_per_prompt for turn in turns for row in turn.rows]
    return PromptRows(policy, [prompt.text for prompt in prompts], order)


def prompts_of(rows: range, images_per_prompt: int) -> list[int]:
    """Which prompt each row belongs to."""
    return [row // images_per_prompt for row in rows]


def _stack(steps: list[Tensor], like: Tensor) -> Tensor:
    """(B, W, ...); (B, 0) when no step was stochastic."""
    return torch.stack(steps, 1) if steps else like.new_empty(len(like), 0)


def micro_batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
