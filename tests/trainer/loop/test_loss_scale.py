"""float16 updates: scaled, skipped together on an overflow, and never silently empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.algorithm.ema import EMA_STEP, Ema, old_policy_rule
from flow_trainer.errors import NonFiniteError
from flow_trainer.loop.updates import loss_scale
from flow_trainer.loop.updates.descend import UpdateStats, learning_rate
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, load_recipe
from policy_steps import CPU, PROMPTS, changed, made_up_advantages, sample

RECIPES = Path(__file__).parents[3] / "trainer" / "recipes"


@pytest.fixture
def half_data(recipe_data: dict[str, Any]) -> dict[str, Any]:
    """float16, full fine-tuning."""
    model = recipe_data["model"] | {"dtype": "float16", "autocast_on_cpu": True}
    return recipe_data | {"model": model}


@pytest.fixture
def half(half_data: dict[str, Any]) -> Recipe:
    return changed(half_data, "update", warmup_updates=4)


@pytest.fixture
def half_policy(half: Recipe) -> Policy:
    policy = load_policy(half.model, CPU, with_reference=False)
    assert policy.dtype == torch.float16
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())
    return policy


class Updater:
    """Updates of one policy, epoch after epoch, on one rollout."""

    def __init__(self, policy: Policy, recipe: Recipe, scale: LossScale) -> None:
        self.policy, self.recipe, self.scale = policy, recipe, scale
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(policy.trainable().values())
        self.ema = Ema(policy.trainable(), lambda k: 0.5)
        self.old = Ema(policy.trainable(), old_policy_rule(0, 0.1, 0.5))
        self.samples, _ = sample(policy, recipe)
        self.conditioning = policy.encode([prompt.text for prompt in PROMPTS])

    def epoch(self, number: int = 0) -> UpdateStats:
        what = self.recipe, number, self.samples, self.conditioning, made_up_advantages(self.recipe)
        if self.recipe.update.forward_process:
            return update_forward(
                self.policy, self.optimizer, self.ema, self.old, *what, scale=self.scale
            )
        return update_policy(self.policy, self.optimizer, self.ema, *what, scale=self.scale)

    def weights(self) -> torch.Tensor:
        return flat(self.policy.trainable().values())


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten().clone() for t in tensors])


def test_scale_doubles_halves_and_survives_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale = LossScale(8.0, dynamic=True)
    for expected in (8, 8, 16, 16):
        scale.grow()
        assert scale.value == expected
    again = LossScale(2.0, dynamic=True)
    again.load_state_dict(scale.state_dict())
    for each in (scale, again):  # one of three is counted already
        each.grow()
        each.grow()
        assert each.value == 32
    assert scale.halve()
    assert scale.state_dict() == {"value": 16, "good": 0, "skipped": 1}
    fixed = LossScale()
    fixed.load_state_dict(scale.state_dict())
    assert (fixed.value, fixed.skipped) == (1, 1)
    assert not fixed.halve()
    scale.load_state_dict({})  # of a checkpoint without one
    assert scale.value == 16


def test_start_is_flow_grpos_at_its_sizes(half_policy: Any, policy: Policy) -> None:
    """65,536 times 32 processes."""
    recipe = load_recipe(RECIPES / "sd35m_ocr.toml", [])
    half_policy.latent_shape = (16, 64, 64)
    assert make_loss_scale(half_policy, recipe).value == 2**21
    assert make_loss_scale(policy, recipe).value == 1


@pytest.mark.parametrize("scale", [2.0**4, 2.0**10])
def test_scale_does_not_change_the_step(half: Recipe, scale: float) -> None:
    found = []
    for value in (1.0, scale):
        policy = load_policy(half.model, CPU, with_reference=False)
        updater = Updater(policy, half, LossScale(value, dynamic=True))
        updater.optimizer = torch.optim.SGD(policy.trainable().values())
        before = updater.weights()
        stats = updater.epoch()
        assert (stats.updates, stats.skipped) == (2, 0)
        found.append((updater.weights() - before, stats.grad_norm))
    (one, norm), (other, other_norm) = found
    assert other_norm == pytest.approx(norm, rel=0.01)
    assert float((one - other).norm() / one.norm()) < 0.02


@pytest.mark.parametrize("objective", ["clip", "nft"])
def test_an_overflow_skips_everything_and_halves(
    half_data: dict[str, Any], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_data["sampling"]["dynamics"] = "flow_sde" if objective == "clip" else "ode"
    recipe = changed(half_data, "update", objective=objective, warmup_updates=4)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    updater = Updater(policy, recipe, LossScale(2.0**40, dynamic=True))
    before, moments = updater.weights(), dict(updater.optimizer.state)
    stats = updater.epoch()
    assert (stats.updates, stats.skipped, stats.grad_norm) == (0, 2, None)
    assert updater.scale.value == 2.0**38
    assert torch.equal(updater.weights(), before)
    assert dict(updater.optimizer.state) == moments == {}
    for average in (updater.ema, updater.old):
        assert int(average.state_dict()[EMA_STEP]) == 0
    updater.scale.value = 2.0**8
    stats = updater.epoch(1)
    # the warm-up goes on where it was: these are updates 0 and 1, not 2 and 3
    assert stats.updates == 2
    assert stats.learning_rate == learning_rate(recipe, 1) < learning_rate(recipe, 3)
    assert int(updater.ema.state_dict()[EMA_STEP]) == 2
    assert int(updater.old.state_dict()[EMA_STEP]) == (2 if objective == "nft" else 0)
    assert not torch.equal(updater.weights(), before)


def test_a_gradient_that_is_not_finite_at_scale_1_ends_the_run(
    half: Recipe, half_policy: Policy
) -> None:
    name, parameter = next(iter(half_policy.trainable().items()))
    parameter.register_hook(lambda grad: grad * float("nan"))
    updater = Updater(half_policy, half, LossScale(2.0, dynamic=True))
    with pytest.raises(NonFiniteError, match=f"the gradient of {name} .*is not finite in update 0"):
        updater.epoch()
    assert updater.scale.skipped == 1  # the first was the scale's to explain


def test_a_loss_that_is_not_finite_is_never_blamed_on_the_scale(
    half: Recipe, half_policy: Policy
) -> None:
    updater = Updater(half_policy, half, LossScale(2.0**10, dynamic=True))
    updater.samples.latents[1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="the log-probability of sample 1 at step 0"):
        updater.epoch()
    assert updater.scale.skipped == 0


@pytest.fixture
def vanishing(half_policy: Policy) -> Iterator[Policy]:
    """Nothing of the loss's gradient comes through the network."""
    handles = [p.register_hook(torch.zeros_like) for p in half_policy.trainable().values()]
    yield half_policy
    for handle in handles:
        handle.remove()


def test_a_gradient_of_nothing_stops_the_run(half: Recipe, vanishing: Policy) -> None:
    updater = Updater(vanishing, half, LossScale(16.0, dynamic=True))
    with pytest.raises(
        NonFiniteError,
        match=r"the gradient norm is 0 in update 0 although advantages are not: .* float16 at loss "
        "scale 16; use model.dtype = float32",
    ):
        updater.epoch()


def test_clipped_samples_may_give_no_gradient(recipe_data: dict[str, Any]) -> None:
    """A second update whose samples all left the trust region: nothing was lost in the network."""
    recipe = changed(recipe_data, "update", clip_range=1e-9, learning_rate=1e-2)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    updater = Updater(policy, recipe, LossScale())
    updater.samples.log_probs.sub_(1.0)  # ratios of e
    advantages = made_up_advantages(recipe)
    advantages.values.abs_()
    stats = update_policy(
        policy,
        updater.optimizer,
        None,
        recipe,
        0,
        updater.samples,
        updater.conditioning,
        advantages,
    )
    assert (stats.updates, stats.grad_norm) == (2, 0)
