"""Closed forms: what the steps must do whatever anybody's code computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import DYNAMICS, euler, flow_sde
from flow_trainer.algorithm.schedule import static_shift_sigmas

STOCHASTIC = sorted(DYNAMICS.keys() - {"ode"})
# Data x_0 ~ N(M, S^2) per element: the marginal at sigma is N((1 - sigma) M, var(sigma)), and the
# velocity E[eps - x_0 | x] is known in closed form.
M, S = 1.5, 0.5


def marginal(sigma: float) -> tuple[float, float]:
    return (1 - sigma) * M, (1 - sigma) ** 2 * S**2 + sigma**2


def exact_velocity(x: Tensor, sigma: float) -> Tensor:
    mean, variance = marginal(sigma)
    centred = (x - mean) / variance
    return sigma * centred - (M + (1 - sigma) * S**2 * centred)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_zero_noise_limit_is_euler(name: str) -> None:
    x, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    step = DYNAMICS[name](x, v, 0.8, 0.6, 1e-5, 0.9)
    torch.testing.assert_close(step.mean, euler(x, v, 0.8, 0.6), atol=1e-5, rtol=0)
    assert float(step.std.max()) < 1e-4


@pytest.mark.parametrize("name", STOCHASTIC)
def test_zero_noise_is_refused(name: str) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="Euler step"):
        DYNAMICS[name](x, x, 0.8, 0.6, 0.0, 0.9)


@pytest.mark.parametrize(
    ("name", "noise_level", "start"),
    # Flow-SDE's diffusion has a pole at sigma = 1, where no grid is fine enough: start below it
    [("flow_sde", 0.7, 0.9), ("dance_sde", 0.3, 1.0), ("cps", 0.05, 1.0), ("euler", 0.0, 1.0)],
)
def test_marginals_of_a_gaussian_flow_are_kept_at_every_step(
    name: str, noise_level: float, start: float
) -> None:
    num_steps = 300
    generator = torch.Generator().manual_seed(0)
    particles = 20_000
    sigmas = [start * (1 - i / num_steps) for i in range(num_steps + 1)]
    mean, variance = marginal(start)
    x = mean + math.sqrt(variance) * torch.randn(particles, 1, generator=generator)
    for i in range(num_steps - 1):
        s, u = sigmas[i], sigmas[i + 1]
        v = exact_velocity(x, s)
        if name == "euler":
            x = euler(x, v, s, u)
        else:
            step = DYNAMICS[name](x, v, s, u, noise_level, sigmas[1])
            x = step.sample(torch.randn(particles, 1, generator=generator))
        mean, variance = marginal(u)
        # five standard errors of the Monte Carlo, plus the first-order error of the grid
        slack = 2.5 / num_steps
        assert float(x.mean()) == pytest.approx(
            mean, abs=5 * math.sqrt(variance / particles) + slack
        )
        error = 5 * variance * math.sqrt(2 / particles) + slack * (1 + variance)
        assert float(x.var()) == pytest.approx(variance, abs=error), f"step {i}"


def test_cps_noise_coefficient_is_exactly_sigma_next() -> None:
    x, v = torch.randn(1, 5), torch.randn(1, 5)
    step = DYNAMICS["cps"](x, v, 0.7, 0.4, 0.6, 1.0)
    eps_coefficient = 0.4 * math.cos(0.6 * math.pi / 2)
    assert float(step.std) ** 2 + eps_coefficient**2 == pytest.approx(0.4**2)
    assert float(DYNAMICS["cps"](x, v, 0.1, 0.0, 0.6, 1.0).std) == 0.0


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde"])
def test_density_is_torchs_normal(name: str) -> None:
    x, v, noise = (torch.randn(3, 4, 2, 2) for _ in range(3))
    step = DYNAMICS[name](
        x, v, torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.9, 0.5, 0.1]), 0.7, 0.9
    )
    x_next = step.sample(noise)
    normal = torch.distributions.Normal(step.mean, step.std.expand_as(step.mean))
    torch.testing.assert_close(step.log_prob(x_next), normal.log_prob(x_next).flatten(1).mean(1))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_gradient_reaches_the_velocity_and_not_the_sample(name: str) -> None:
    x, v, noise = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    step = DYNAMICS[name](x.detach(), v, 0.8, 0.6, 0.7, 0.9)
    x_next = step.mean.detach() + step.std * noise
    step.log_prob(x_next).sum().backward()
    assert noise.grad is None
    assert v.grad is not None
    assert bool(v.grad.abs().sum() > 0)


def test_mixed_steps_equal_each_step_alone() -> None:
    sigmas = static_shift_sigmas(10, 3.0)
    x, v = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    steps = torch.tensor([0, 4, 8])
    mixed = flow_sde(x, v, sigmas[steps], sigmas[steps + 1], 0.7, float(sigmas[1]))
    for row, i in enumerate(steps.tolist()):
        one = slice(row, row + 1)
        alone = flow_sde(
            x[one], v[one], float(sigmas[i]), float(sigmas[i + 1]), 0.7, float(sigmas[1])
        )
        torch.testing.assert_close(mixed.mean[one], alone.mean)
        torch.testing.assert_close(mixed.std[one], alone.std)
