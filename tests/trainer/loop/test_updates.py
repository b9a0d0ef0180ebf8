"""Replay and update on real diffusers classes with random weights."""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from flow_trainer.algorithm.advantages import Advantages, group_advantages
from flow_trainer.algorithm.ema import Ema, old_policy_rule
from flow_trainer.algorithm.step_weights import noise_weights, step_stds
from flow_trainer.errors import NonFiniteError, RatioError
from flow_trainer.loop.ratio import check_ratio, measure_ratio
from flow_trainer.loop.update import UPDATES
from flow_trainer.loop.updates import chosen, forward, trajectory
from flow_trainer.loop.updates.descend import learning_rate
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.replay import reference_velocities, trained_steps
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, Update, parse_recipe
from flow_trainer.recipe.update import (
    OnChosenSamples,
    OnFinishedSamples,
    OnGradients,
    OnTeachers,
    OnTrajectories,
)
from policy_steps import CPU, PROMPTS, changed, made_up_advantages, sample, update


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_update_does_not_depend_on_the_batch_split(
    recipe_data: dict[str, Any], tuning: str
) -> None:
    weights = []
    for micro_batch, steps_per_forward in ((4, 1), (8, 3), (3, 2)):
        data = {**recipe_data, "model": {**recipe_data["model"], "tuning": tuning, "lora_rank": 2}}
        data["update"] = {
            **data["update"],
            "kl": "gaussian",
            "beta": 0.01,
            "steps_per_forward": steps_per_forward,
        }
        recipe = changed(data, "sampling", micro_batch=micro_batch)
        torch.manual_seed(0)  # LoRA's own initialisation
        policy = load_policy(recipe.model, CPU, with_reference=True)
        samples, _ = sample(policy, recipe)
        stats = update(policy, recipe, samples)
        assert stats.updates == 2
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    # AdamW's first steps have the size of the learning rate whatever the gradient: parameters with
    # a vanishing gradient may go either way on rounding, so compare the bulk
    for other in weights[1:]:
        close = torch.isclose(other, weights[0], atol=1e-5)
        assert float(close.float().mean()) > 0.99


def test_first_update_has_ratio_one(policy: Policy, recipe_data: dict[str, Any]) -> None:
    for kind in ("flow_sde", "cps", "dance_sde"):
        recipe = changed(recipe_data, "sampling", dynamics=kind)
        samples, _ = sample(policy, recipe)
        before = [p.detach().clone() for p in policy.trainable().values()]
        stats = update(policy, recipe, samples)
        assert samples.means is None
        assert stats.ratio_error < 1e-6
        assert stats.means()["clip_fraction"] >= 0
        after = policy.trainable().values()
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_every_objective_has_its_line() -> None:
    assert tuple(trajectory.OBJECTIVES) == get_args(OnTrajectories)
    assert tuple(forward.OBJECTIVES) == get_args(OnFinishedSamples)
    assert tuple(chosen.OBJECTIVES) == tuple(chosen.WEIGHTS) == get_args(OnChosenSamples)
    kinds = {
        Update(objective=name).trains_on
        for name in (
            *get_args(OnTrajectories),
            *forward.OBJECTIVES,
            *chosen.OBJECTIVES,
            *get_args(OnTeachers),
            *get_args(OnGradients),
        )
    }
    assert kinds == set(UPDATES)


@pytest.mark.parametrize("objective", ["guard", "dppo"])
def test_objectives_that_compare_means(
    policy: Policy, recipe_data: dict[str, Any], objective: str
) -> None:
    recipe = changed(recipe_data, "update", objective=objective)
    samples, _ = sample(policy, recipe)
    assert samples.means is not None
    assert samples.means.shape == (8, 3, 4, 4, 4)
    stats = update(policy, recipe, samples)
    assert stats.ratio_error < 1e-6
    assert stats.means()["approx_kl"] > 0  # the second update is off-policy


def test_step_weights_scale_the_loss_of_each_step(recipe_data: dict[str, Any]) -> None:
    losses = {}
    for kind in ("none", "noise", "flash"):
        recipe = changed(recipe_data, "update", step_weight=kind, updates_per_epoch=1)
        policy = load_policy(recipe.model, CPU, with_reference=False)
        samples, _ = sample(policy, recipe)
        optimizer = torch.optim.AdamW(policy.trainable().values())
        ones = Advantages(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), {})
        texts = policy.encode([prompt.text for prompt in PROMPTS])
        stats = update_policy(policy, optimizer, None, recipe, 0, samples, texts, ones)
        losses[kind] = stats.means()["loss"]
    # on-policy the ratio is 1, and the pool is what is trained
    stds = step_stds("flow_sde", samples.sigmas, recipe.sampling.noise_level)[:3]
    assert losses["none"] == pytest.approx(-1, abs=1e-6)
    assert losses["noise"] == pytest.approx(-float(noise_weights(stds).mean()), rel=1e-5)
    assert losses["flash"] == pytest.approx(-1, rel=1e-5)


def test_the_pool_of_a_window_holds_every_epochs_steps(recipe_data: dict[str, Any]) -> None:
    for kind in ("all", "first", "random", "progressive"):
        window = {"kind": kind, "size": 1, "lo": 1, "every": 1}
        recipe = changed(recipe_data, "sampling", window=window)
        reached = {step for epoch in range(20) for step in recipe.window(epoch)}
        assert reached == set(recipe.window_pool)


def forward_update(
    policy: Policy, recipe: Recipe, used: bool = True
) -> tuple[Any, torch.optim.Optimizer, Ema]:
    old = Ema(policy.trainable(), old_policy_rule(0, 0.1, 0.5))
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2, weight_decay=0.0)
    samples, _ = sample(policy, recipe)
    assert samples.latents.shape == (8, 0)
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    advantages = made_up_advantages(recipe)
    if not used:
        advantages.used[:] = False
    stats = update_forward(
        policy, optimizer, None, old, recipe, 0, samples, conditioning, advantages
    )
    return stats, optimizer, old


FORWARD: dict[str, dict[str, Any]] = {
    "nft": {},
    "awm": {},
    "epg": {"gradient": "epg", "times": "stratified"},
    "pepg": {"share": "pairs"},
    "ram": {},
    "dgpo": {"share": "pairs", "strength": 100.0, "first_steps": 3},
    "crd": {"share": "times", "reference_guidance": 2.0},
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_process_updates(recipe_data: dict[str, Any], name: str) -> None:
    weights = []
    objective = "epg" if name == "pepg" else name
    whole = objective in ("dgpo", "crd")
    for micro_batch, steps_per_forward in ((4, 1), (8, 3) if whole else (3, 2)):
        data = {**recipe_data, "forward": {"old_beta": 0.5, **FORWARD[name]}}
        data["sampling"] = {**data["sampling"], "dynamics": "ode2", "micro_batch": micro_batch}
        recipe = changed(
            data,
            "update",
            objective=objective,
            kl="kl2" if name == "pepg" else "velocity",
            beta=0.01,
            clip_range=1.0,
            steps_per_forward=steps_per_forward,
        )
        policy = load_policy(recipe.model, CPU, with_reference=True)
        start = {key: p.detach().clone() for key, p in policy.trainable().items()}
        stats, _, old = forward_update(policy, recipe)
        assert stats.updates == 2
        assert stats.count == 8 * 3
        assert stats.means()["kl"] > 0  # the second update has moved
        for key, weight in policy.trainable().items():
            expected = torch.lerp(start[key], weight.detach(), 0.8)  # two steps: d = 0.2
            torch.testing.assert_close(old.weights()[key], expected, atol=1e-6, rtol=1e-5)
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    assert float(torch.isclose(weights[1], weights[0], atol=1e-4).float().mean()) > 0.99


def test_a_guided_reference_is_another(policy: Policy) -> None:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    texts = policy.encode(["red", "blue"])
    sigma = torch.tensor([0.5, 0.7])
    with torch.no_grad():
        plain = policy.velocity(x, sigma, texts)
        with policy.reference(2.0):
            guided = policy.velocity(x, sigma, texts)
        with policy.reference():
            torch.testing.assert_close(policy.velocity(x, sigma, texts), plain)
        null = policy.velocity(x, sigma, policy.encode(["", ""]))
    torch.testing.assert_close(guided, null + 2 * (plain - null), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(guided, plain, atol=1e-5)


def test_finished_samples_may_be_drawn_with_noise(
    policy: Policy, recipe_data: dict[str, Any]
) -> None:
    window = {"kind": "first", "size": 2}
    clip = changed(recipe_data, "sampling", same_latent=True, window=window)
    nft = changed(clip.model_dump(), "update", objective="nft")
    on_trajectories, _ = sample(policy, clip)
    samples, _ = sample(policy, nft)
    assert torch.equal(samples.x_0, on_trajectories.x_0)
    assert samples.latents.numel() == samples.log_probs.numel() == 0, "nothing is kept of the steps"
    first, second = samples.x_0[:2]
    assert not torch.allclose(first, second), "one noise at the start, others on the way"
    stats, _, _ = forward_update(policy, nft)
    assert stats.updates == 2


@pytest.mark.parametrize("times", ["schedule", "stratified"])
def test_skipped_levels_are_not_trained(
    policy: Policy, recipe_data: dict[str, Any], times: str
) -> None:
    data = {**recipe_data, "forward": {"skip_steps": 1, "first_steps": 3, "times": times}}
    data["sampling"] = {**data["sampling"], "dynamics": "ode"}
    recipe = changed(data, "update", objective="epg", trained_steps=2)
    samples, _ = sample(policy, recipe)
    levels = forward._levels(recipe, 0, samples, samples.keys)[:, :2]
    schedule = samples.sigmas
    assert float(levels.max()) <= float(schedule[1]) < float(schedule[0])
    assert float(levels.min()) > float(schedule[3])
    if times == "schedule":
        assert set(levels.unique().tolist()) == set(schedule[1:3].tolist())


def test_unscored_samples_do_not_enter_the_forward_update(recipe_data: dict[str, Any]) -> None:
    data = {**recipe_data, "sampling": {**recipe_data["sampling"], "dynamics": "ode"}}
    recipe = changed(data, "update", objective="nft")
    policy = load_policy(recipe.model, CPU, with_reference=False)
    before = [p.detach().clone() for p in policy.trainable().values()]
    stats, _, _ = forward_update(policy, recipe, used=False)
    assert stats.count == 0
    for a, b in zip(policy.trainable().values(), before, strict=True):
        assert torch.equal(a, b)


def test_ratio_check_names_a_changed_policy(policy: Policy, recipe: Recipe) -> None:
    report = measure_ratio(policy, recipe, PROMPTS)
    assert report.ok
    assert "within" in report.explain()
    check_ratio(policy, recipe, PROMPTS)
    velocity = policy.velocity

    def noisy(x: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        return velocity(x, sigma, conditioning) + 0.1 * torch.rand_like(x)

    policy.velocity = noisy  # type: ignore[method-assign]
    with pytest.raises(RatioError, match="two identical forwards differ"):
        check_ratio(policy, recipe, PROMPTS)


def test_samples_without_advantage_do_not_move_the_policy(policy: Policy, recipe: Recipe) -> None:
    samples, _ = sample(policy, recipe)
    rewards = np.full((2, 4), 0.5)
    flat = group_advantages(rewards, np.ones((2, 4), bool), std="prompt", min_group=2, clip=5.0)
    optimizer = torch.optim.AdamW(policy.trainable().values(), weight_decay=0.0)
    before = [p.detach().clone() for p in policy.trainable().values()]
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    update_policy(policy, optimizer, None, recipe, 0, samples, conditioning, flat)
    for a, b in zip(policy.trainable().values(), before, strict=True):
        assert torch.equal(a, b)


def test_skipped_micro_batches_do_not_change_the_kl_term(recipe_data: dict[str, Any]) -> None:
    recipe_data["update"] = {**recipe_data["update"], "kl": "velocity", "beta": 10.0}
    values = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    advantages = Advantages(values, torch.ones(2, 4, dtype=torch.bool), {})
    moved = []
    for micro_batch in (4, 2, 1):
        recipe = changed(recipe_data, "sampling", micro_batch=micro_batch)
        policy = load_policy(recipe.model, CPU, with_reference=True)
        with torch.no_grad():  # away from the reference, so that the KL term has a gradient
            for parameter in policy.trainable().values():
                parameter *= 1.1
        start = torch.cat([p.detach().flatten() for p in policy.trainable().values()])
        samples, _ = sample(policy, recipe)
        conditioning = policy.encode([prompt.text for prompt in PROMPTS])
        v_ref = reference_velocities(policy, recipe, 0, samples, conditioning)
        optimizer = torch.optim.SGD(policy.trainable().values())
        update_policy(policy, optimizer, None, recipe, 0, samples, conditioning, advantages, v_ref)
        end = torch.cat([p.detach().flatten() for p in policy.trainable().values()])
        moved.append(end - start)
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < 1e-3


def test_reference_is_the_start(recipe_data: dict[str, Any]) -> None:
    for tuning in ("lora", "full"):
        recipe = changed(recipe_data, "model", tuning=tuning, lora_rank=2)
        policy = load_policy(recipe.model, CPU, with_reference=True)
        conditioning = policy.encode(["red"])
        x, sigma = torch.randn(1, *policy.latent_shape), torch.tensor([0.5])
        with torch.no_grad():
            start = policy.velocity(x, sigma, conditioning)
            for parameter in policy.trainable().values():
                parameter += 0.1 * torch.randn_like(parameter)
            moved = policy.velocity(x, sigma, conditioning)
            with policy.reference():
                reference = policy.velocity(x, sigma, conditioning)
            again = policy.velocity(x, sigma, conditioning)
        torch.testing.assert_close(reference, start)
        assert not torch.allclose(moved, start)
        assert torch.equal(again, moved)


def test_divergence_is_named(policy: Policy, recipe: Recipe) -> None:
    samples, _ = sample(policy, recipe)
    with torch.no_grad():
        next(iter(policy.trainable().values())).fill_(float("nan"))
    with pytest.raises(
        NonFiniteError,
        match="the velocity at step 0 of sample 0 is not finite in the sampling of epoch 1",
    ):
        sample(policy, recipe)
    with pytest.raises(
        NonFiniteError, match="the velocity of sample 0 at step 0 is not finite in the update"
    ):
        update(policy, recipe, samples)


@pytest.mark.parametrize("where", ["advantage", "gradient", "embedding", "pixels", "log-prob"])
def test_whatever_is_not_finite_is_named(policy: Any, recipe: Recipe, where: str) -> None:
    nan = float("nan")
    if where == "embedding":
        policy._pipeline.text_encoder.get_input_embeddings().weight.data.fill_(nan)
        with pytest.raises(NonFiniteError, match="the embedding of prompt 'red'"):
            policy.encode(["red"])
        return
    if where == "pixels":
        policy._vae.decoder.conv_out.bias.data.fill_(nan)
        with pytest.raises(NonFiniteError, match="decoded pixels"):
            sample(policy, recipe)
        return
    samples, _ = sample(policy, recipe)
    advantages = made_up_advantages(recipe)
    name, parameter = next(iter(policy.trainable().items()))
    message = {
        "advantage": "the advantage of sample 5 at step 0",
        "log-prob": "the log-probability of sample 2 at step 1",
        "gradient": f"the gradient of {name} \\(1 in all\\) is not finite in update 0",
    }[where]
    if where == "advantage":
        advantages.values[1, 1] = nan
    elif where == "log-prob":
        samples.latents[2, 2] = nan
    else:
        parameter.register_hook(lambda grad: grad * nan)
    optimizer = torch.optim.AdamW(policy.trainable().values())
    conditioning = policy.encode([prompt.text for prompt in PROMPTS])
    with pytest.raises(NonFiniteError, match=message):
        update_policy(policy, optimizer, None, recipe, 0, samples, conditioning, advantages)


def test_trained_steps_and_learning_rate(recipe_data: dict[str, Any]) -> None:
    recipe = changed(
        recipe_data, "update", trained_steps=2, warmup_updates=2, final_learning_rate=0.1
    )
    drawn = {tuple(trained_steps(recipe, epoch)) for epoch in range(50)}
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    assert trained_steps(parse_recipe(recipe_data), 0) == [0, 1, 2]
    rates = [learning_rate(recipe, update) for update in range(recipe.num_updates)]
    np.testing.assert_allclose(rates[:3], [5e-4, 1e-3, 1e-3])
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[2:] == sorted(rates[2:], reverse=True)
