"""Windows, noise, advantages, objective, EMA and prompts: the parts without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flow_trainer.algorithm import ema
from flow_trainer.algorithm.advantages import combine_rewards, distinctness, group_advantages
from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.algorithm.noise import (
    evaluation_noise,
    forward_noise,
    forward_steps,
    sample_noise,
    stratified_times,
)
from flow_trainer.algorithm.objectives.clip import Replayed, clip_objective
from flow_trainer.algorithm.objectives.dppo import dppo_objective
from flow_trainer.algorithm.objectives.matching import Noised
from flow_trainer.algorithm.objectives.nft import nft_objective
from flow_trainer.algorithm.schedule import dynamic_shift_sigmas, sigma_at
from flow_trainer.algorithm.window import window
from flow_trainer.loop.updates.trajectory import OBJECTIVES
from flow_trainer.recipe import Reward

SHAPE = (2, 4, 4)


def draw(kind: str, epoch: int = 0, seed: int = 0, **changes: int | None) -> range:
    arguments = {"num_steps": 10, "size": 3, "lo": 1, "hi": 8, "every": 2, "stride": 1, **changes}
    return window(kind, epoch=epoch, seed=seed, **arguments)  # type: ignore[arg-type]


def test_who_is_apart_from_its_group_gets_the_larger_bonus() -> None:
    small = torch.zeros(6, 2, 2, 3, dtype=torch.uint8)
    small[2] = 255  # one white image among two black ones
    small[3:] = 51  # three of the same gray: a fifth of white
    expected = [0.5, 0.5, 1.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(distinctness(small, 3), expected)
    small[4, 0] = 255  # half of its pixels differ by 0.8
    np.testing.assert_allclose(distinctness(small, 3)[3:], np.sqrt(0.32) * np.array([0.5, 1, 0.5]))


def test_one_step_has_no_end_to_stretch() -> None:
    assert dynamic_shift_sigmas(1, 0.6, terminal=0.02).tolist() == [1.0, 0.0]
    stretched = dynamic_shift_sigmas(4, 0.6, terminal=0.02).tolist()
    assert stretched[0] == 1.0
    assert stretched[3:] == pytest.approx([0.02, 0.0])


def test_windows() -> None:
    assert draw("all") == range(9)
    assert draw("first") == range(1, 4)
    moving = [draw("progressive", epoch) for epoch in range(16)]
    assert [w.start for w in moving] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 1, 1]
    assert [len(w) for w in moving[8:14]] == [3, 3, 2, 2, 1, 1]
    assert [draw("progressive", 2 * k, stride=3).start for k in range(4)] == [1, 4, 7, 1]
    starts = {draw("random", epoch).start for epoch in range(200)}
    assert starts == {1, 2, 3, 4, 5}
    assert draw("random", 3) == draw("random", 3)
    assert [draw("random", e, seed=1) for e in range(20)] != [draw("random", e) for e in range(20)]


def test_the_last_step_is_never_stochastic() -> None:
    with pytest.raises(ValueError, match="cannot be stochastic"):
        draw("random", hi=10)
    with pytest.raises(ValueError, match="do not fit"):
        draw("first", size=8)
    assert max(draw("random", e, hi=None)[-1] for e in range(100)) == 8


def test_noise_depends_on_the_sample_alone() -> None:
    keys = [(p, g) for p in (3, 5) for g in range(4)]
    initial, steps = sample_noise(7, 2, keys, SHAPE, 3)
    for start in range(0, 8, 3):
        part = sample_noise(7, 2, keys[start : start + 3], SHAPE, 3)
        assert torch.equal(part[0], initial[start : start + 3])
        assert torch.equal(part[1], steps[start : start + 3])
    everything = torch.cat(
        [initial.flatten(), steps.flatten(), evaluation_noise(7, keys, SHAPE).flatten()]
    )
    assert len(everything.unique()) == len(everything)
    for other in ((8, 2), (7, 3)):
        assert not torch.equal(sample_noise(*other, keys, SHAPE, 3)[0], initial)
    assert torch.equal(evaluation_noise(7, keys, SHAPE), evaluation_noise(7, keys, SHAPE))


def test_same_latent_shares_only_the_initial_noise() -> None:
    initial, steps = sample_noise(0, 0, [(1, 0), (1, 1), (2, 0)], SHAPE, 1, same_latent=True)
    assert torch.equal(initial[0], initial[1])
    assert not torch.equal(initial[0], initial[2])
    assert not torch.equal(steps[0], steps[1])


def test_advantages_sum_to_zero_in_every_group_and_ignore_failed_samples() -> None:
    rng = np.random.default_rng(0)
    rewards, valid = rng.random((5, 6)), np.ones((5, 6), bool)
    valid[0, :2] = False
    valid[1, 1:] = False
    valid[2] = False
    rewards[~valid] = np.nan
    rewards[3] = 0.25
    found = group_advantages(rewards, valid, std="prompt", min_group=2, clip=5.0)
    np.testing.assert_allclose(found.values.sum(1), 0, atol=1e-12)
    assert torch.equal(found.used[1:3], torch.zeros(2, 6, dtype=torch.bool))
    assert not found.values[1:4].any()
    assert not found.values[0, :2].any()
    assert found.values[0, 2:].all()
    assert found.metrics["dropped_groups"] == 2
    assert found.metrics["zero_std_ratio"] == pytest.approx(1 / 3)
    alone = group_advantages(rewards[:1, 2:], valid[:1, 2:], std="prompt", min_group=2, clip=5.0)
    torch.testing.assert_close(alone.values, found.values[:1, 2:])


@pytest.mark.parametrize("std", ["prompt", "global", "none", "gdpo"])
@pytest.mark.parametrize("size", [1, 3, 18, 24])
def test_equal_rewards_have_no_advantage_at_all(std: str, size: int) -> None:
    # sums of 0.1, 0.7 and 25.3 round: a mean taken plainly differs from them
    rewards = np.repeat([[0.1], [0.7], [25.3], [0.0]], size, axis=1)
    rewards[3] = np.arange(size) / 7
    terms = {"a": Reward(url="")}
    used = np.ones_like(rewards, bool)
    normalise = "prompt" if std == "gdpo" else None
    total = combine_rewards({"a": rewards}, terms, used, normalise=normalise)
    found = group_advantages(total, used, std=std, min_group=1, clip=5.0)
    assert not found.values[:3].any()
    assert bool(found.values[3].any()) == (size > 1)
    assert found.metrics["zero_std_ratio"] == (0.75 if size > 1 else 1.0)


def test_advantage_scopes_and_clip() -> None:
    rewards = np.array([[0.0, 1.0], [0.0, 0.1]])
    valid = np.ones((2, 2), bool)
    plain = group_advantages(rewards, valid, std="none", min_group=2, clip=5.0).values
    np.testing.assert_allclose(plain, [[-0.5, 0.5], [-0.05, 0.05]])
    shared = group_advantages(rewards, valid, std="global", min_group=2, clip=5.0).values
    np.testing.assert_allclose(shared / plain, 1 / (rewards.std() + 1e-4))
    assert (
        float(group_advantages(rewards, valid, std="prompt", min_group=2, clip=0.3).values.max())
        == 0.3
    )
    with pytest.raises(ValueError, match="unknown advantage"):
        group_advantages(rewards, valid, std="batch", min_group=2, clip=5.0)


def test_rewards_are_clipped_and_normalised_over_scored_samples() -> None:
    rewards = {"a": np.array([[0.0, 2.0, np.nan], [4.0, 90.0, 6.0]]), "b": np.ones((2, 3))}
    used = ~np.isnan(rewards["a"])
    terms = {
        "a": Reward(url="", weight=2.0, clip=(0.0, 6.0), normalise="prompt"),
        "b": Reward(url="", weight=3.0),
    }
    total = combine_rewards(rewards, terms, used)
    np.testing.assert_allclose(total[0], [1.0, 5.0, 0.0])
    np.testing.assert_allclose(total[1], 3 + 2 * np.array([-2, 1, 1]) / np.sqrt(2))
    terms["a"] = Reward(url="", normalise="global")
    a = combine_rewards({"a": rewards["a"]}, terms, used)[used]
    assert a.mean() == pytest.approx(0)
    assert a.std() == pytest.approx(1)


def replayed(log_prob: torch.Tensor, old: torch.Tensor, shift: float = 0.0) -> Replayed:
    unit = torch.ones(len(old))
    return Replayed(log_prob, old, std=0.5 * unit, d=0.1 * unit, mean_square=shift * unit)


def test_every_objective_starts_as_the_policy_gradient() -> None:
    advantages = torch.tensor([1.0, -2.0, 0.0, 3.0])
    old = torch.randn(4)
    for name, scale in (("clip", 1.0), ("guard", 0.5 / 0.1), ("dppo", 1.0)):
        log_prob = old.clone().requires_grad_(True)
        OBJECTIVES[name](replayed(log_prob, old), advantages, 1e-5)[0].sum().backward()
        torch.testing.assert_close(log_prob.grad, -advantages * scale)


def test_dppo_masks_only_what_moves_further() -> None:
    log_prob = torch.tensor([0.3, 0.3, -0.3, -0.3], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for shift, kept in ((1e-9, [True] * 4), (1.0, [False, True, True, False])):
        log_prob.grad = None
        step = replayed(log_prob, torch.zeros(4), shift)
        dppo_objective(step, advantages, 1e-5)[0].sum().backward()
        assert log_prob.grad is not None
        assert (log_prob.grad != 0).tolist() == kept


def test_objective_on_policy_is_the_policy_gradient() -> None:
    old = torch.randn(6)
    log_prob = old.clone().requires_grad_(True)
    advantages = torch.tensor([1.0, -2.0, 0.0, 3.0, -1.0, 0.5])
    loss, diagnostics = clip_objective(replayed(log_prob, old), advantages, 1e-4)
    loss.sum().backward()
    torch.testing.assert_close(log_prob.grad, -advantages)
    assert not diagnostics["clip_fraction"].any()


def test_objective_stops_at_the_clip() -> None:
    old = torch.zeros(4)
    log_prob = torch.tensor([0.3, 0.3, -0.3, -0.3], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clip_objective(replayed(log_prob, old), advantages, 0.2)[0].sum().backward()
    assert log_prob.grad is not None
    assert (log_prob.grad != 0).tolist() == [False, True, True, False]


def test_ema_repeats_are_applications_to_the_same_weights() -> None:
    once, thrice = (ema_rule(0.9, 8, repeats) for repeats in (1, 3))
    assert once(6) == thrice(6) == 1.0
    for k in (7, 15, 239):
        average, weight, d = 0.0, 1.0, once(k)
        for _ in range(3):
            average = d * average + (1 - d) * weight
        assert average == pytest.approx(1 - thrice(k))


def test_ema_swaps_back_after_an_exception() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": parameter}, ema_rule(0.9, 1))
    parameter.data.fill_(1.0)
    ema.update()
    average = float(ema.weights()["w"][0])
    assert average == pytest.approx(1 - 2 / 11)
    seen = []

    def fails_inside() -> None:
        with ema.swapped():
            seen.append(parameter[0].item())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_inside()
    assert seen == [pytest.approx(average)]
    assert parameter.tolist() == [1.0] * 3
    other = Ema({"w": torch.nn.Parameter(torch.zeros(3))}, ema_rule(0.9, 1))
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.weights()["w"], ema.weights()["w"])


def test_the_old_policy_lags_more_and_more() -> None:
    # DiffusionNFT's decay types 0, 1 and 2
    copy, slow, late = (
        old_policy_rule(*numbers)
        for numbers in ((0, 0.0, 0.0), (0, 0.001, 0.5), (75, 0.0075, 0.999))
    )
    assert [copy(k) for k in (0, 100)] == [0, 0]
    assert [slow(k) for k in (1, 499, 600)] == pytest.approx([0.001, 0.499, 0.5])
    assert [late(k) for k in (74, 75, 175, 300)] == pytest.approx([0, 0, 0.75, 0.999])


def test_forward_noise_depends_on_the_sample_and_the_level() -> None:
    keys = [(3, 0), (3, 1), (5, 0)]
    noise = forward_noise(7, 2, keys, SHAPE, [0, 1, 2])
    assert torch.equal(forward_noise(7, 2, keys[1:], SHAPE, [2]), noise[1:, 2:])
    assert len(noise.unique()) == noise.numel()
    steps = forward_steps(7, 2, keys, 10)
    assert steps.sort(1).values.tolist() == [list(range(10))] * 3
    assert not torch.equal(steps[0], steps[1])
    assert torch.equal(forward_steps(7, 2, keys[1:], 10), steps[1:])


def test_a_group_shares_times_and_noise_when_told() -> None:
    keys = [(3, 0), (3, 1), (4, 0)]
    for draw in (
        lambda shared: forward_steps(1, 2, keys, 9, shared=shared),
        lambda shared: stratified_times(1, 2, keys, 9, shared=shared),
        lambda shared: forward_noise(1, 2, keys, (2, 3), [0, 4], shared=shared),
    ):
        own, shared = draw(False), draw(True)
        assert not torch.equal(own[0], own[1])
        assert torch.equal(shared[0], shared[1])
        assert not torch.equal(shared[0], shared[2])


def test_stratified_times_lie_one_in_each_part() -> None:
    times = stratified_times(1, 2, [(0, g) for g in range(50)], 4)
    assert torch.equal((times * 4).long(), torch.arange(4).expand(50, 4))
    sigmas = torch.tensor([1.0, 0.8, 0.4, 0.0])
    at = sigma_at(sigmas, torch.tensor([0.0, 0.5, 2.0, 2.75]))
    torch.testing.assert_close(at, torch.tensor([1.0, 0.9, 0.4, 0.1]))


def test_nft_pulls_good_samples_and_pushes_bad_ones() -> None:
    x_0, noise = torch.randn(2, 3, *SHAPE)
    sigma = torch.full((3,), 0.5)
    x_t = 0.5 * x_0 + 0.5 * noise
    v_old = noise - x_0 + 0.3 * torch.randn(3, *SHAPE)
    v = v_old.clone().requires_grad_(True)
    advantages = torch.tensor([5.0, -5.0, 0.0])
    step = Noised(x_0, noise, x_t, sigma, v, v_old)
    nft_objective(step, advantages, strength=1.0, advantage_clip=5.0)[0].sum().backward()
    assert v.grad is not None
    towards = (-v.grad * (noise - x_0 - v_old)).flatten(1).sum(1)
    assert towards[0] > 0
    torch.testing.assert_close(towards[1], -towards[1].abs())
    torch.testing.assert_close(v.grad[2], torch.zeros(SHAPE), atol=1e-7, rtol=0)


def test_averages_are_swapped_in_few_kernels_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "CHUNK_ELEMENTS", 40)
    parameters = {f"w{i}": torch.nn.Parameter(torch.full((10,), float(i))) for i in range(9)}
    parameters["large"] = torch.nn.Parameter(torch.full((100,), 9.0))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    average = Ema(parameters, lambda k: 0.5)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 2
    average.update()
    with profile(activities=[ProfilerActivity.CPU]) as profiled, average.swapped():
        for name, parameter in parameters.items():
            assert torch.equal(parameter, before[name] + 1)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name] + 2)
        assert torch.equal(average.weights()[name], before[name] + 1)
    calls = {event.key: event.count for event in profiled.key_averages()}
    assert calls["aten::_foreach_copy_"] == 2 * 3 * 4  # there and back, in four parts
