"""Gradients of image-text data: supervised fine-tuning on images, Flow-DPO on pairs of them. They join
those of an update on samples, or are all there is."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.noise import forward_noise, stratified_times
from flow_trainer.algorithm.objectives.dpo import dpo_objective
from flow_trainer.algorithm.objectives.sft import sft_objective
from flow_trainer.algorithm.schedule import sigma_at
from flow_trainer.loop.rollout import micro_batches
from flow_trainer.loop.updates.descend import UpdateStats, descend
from flow_trainer.loop.updates.examples import Examples
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.data import Data


class DataGradients:
    """Of one epoch. All ranks call it together, and divide its examples among them."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        data: Data,
        examples: Examples,
        epoch: int,
        world: World = ALONE,
    ) -> None:
        self._policy = policy
        self._recipe = recipe
        self._data = data
        self._examples = examples
        self._epoch = epoch
        self._world = world
        self._numbers = examples.chosen(recipe, data, epoch)
        self._sigmas = policy.sigmas(recipe.sampling.num_steps)
        self._seen = UpdateStats()

    def __call__(self, update: int, scale: float, stats: UpdateStats) -> None:
        """Adds the gradient of this update's examples, times `scale`; what is not finite is found by
        `stats`. Raises ConfigError for an image that cannot be read."""
        data = self._data
        own = self._numbers[update * data.batch : (update + 1) * data.batch]
        rows = len(own) * data.members * data.levels
        size = max(1, self._recipe.sampling.micro_batch // data.members)
        turns = [
            turn for turn in self._world.turns(list(micro_batches(len(own), size))) if turn.rows
        ]
        for turn in turns:
            numbers = [own[row] for row in turn.rows]
            images = self._examples.images(numbers)
            x_0 = self._policy.to_latents(images, self._recipe.sampling.decode_batch)
            seen = stats if turn.counts else UpdateStats()
            for level in range(data.levels):
                total = self._loss(numbers, x_0, level, turn.rows, seen, turn.counts)
                last = turn is turns[-1] and level == data.levels - 1
                self._policy.before_backward(last=last)
                (total * data.weight * scale / rows if turn.counts else total * 0).backward()

    def means(self) -> dict[str, float]:
        """Over the epoch's examples and all ranks; by name, as the metrics have them."""
        self._seen.join(self._world)
        return {f"data.{name}": value for name, value in self._seen.means().items()}

    def _loss(
        self,
        numbers: list[int],
        x_0: Tensor,
        level: int,
        rows: range,
        stats: UpdateStats,
        counts: bool,
    ) -> Tensor:
        """The sum over these examples, whose images are x_0 (B, C, h, w), at one of their levels."""
        policy, data, device = self._policy, self._data, self._policy.device
        # numbers below 0 are nobody's prompt: the samples of the same run have other noise
        keys = [(-1 - number, 0) for number in numbers]
        seed, shape = self._recipe.seed, policy.latent_shape
        noise = forward_noise(seed, self._epoch, keys, shape, [level])[:, 0].to(device)
        times = stratified_times(seed, self._epoch, keys, data.levels)[:, level]
        sigma = sigma_at(self._sigmas, times * self._recipe.sampling.num_steps).to(device)
        texts = policy.encode(self._examples.texts(numbers)).repeat(data.members)
        # a pair has one noise and one noise level
        noise, sigma = (t.repeat_interleave(data.members, 0) for t in (noise, sigma))
        column = sigma.view(-1, *[1] * (x_0.ndim - 1))
        x_t, target = (1 - column) * x_0 + column * noise, noise - x_0
        v_ref = None
        if data.pairs is not None:
            with torch.no_grad(), policy.reference(data.guidance):
                v_ref = policy.velocity(x_t, sigma, texts)
        with policy.guided(data.guidance):
            v = policy.velocity(x_t, sigma, texts)
        if v_ref is None:
            loss, diagnostics = sft_objective(v, target, torch.ones_like(sigma))
        else:
            signs = torch.tensor([1.0, -1.0], device=device).repeat(len(numbers))
            pairs = torch.arange(len(numbers), device=device).repeat_interleave(2)
            loss, diagnostics = dpo_objective(v, v_ref, target, signs, pairs, beta=data.preference)
        watched = [row for row in rows for _ in range(data.members)]
        levels = torch.full((len(watched),), level)
        stats.watch.see({"velocity on [data]": v, "loss on [data]": loss}, watched, levels)
        stats.see_velocity(v)
        if counts:
            self._seen.add({**diagnostics, "loss": loss.detach()}, len(loss))
        return loss.sum()


def update_data(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    gradients: DataGradients,
    world: World = ALONE,
    scale: LossScale | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps on data alone. Raises ConfigError, NonFiniteError."""
    stats = UpdateStats()
    nothing = torch.zeros(recipe.images_per_epoch)

    def loss(rows: range, steps: list[int], update: int, stats: UpdateStats) -> Tensor:
        raise AssertionError("no sample is wanted")

    descend(
        policy,
        optimizer,
        ema,
        recipe,
        epoch,
        [],  # of no sample
        nothing,
        loss,
        stats,
        None,
        world,
        scale,
        gradients,
    )
    stats.beside = gradients.means()
    return stats
