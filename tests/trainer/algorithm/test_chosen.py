"""Which samples of a group the baselines choose, and what they minimise, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from flow_trainer.algorithm.objectives.dpo import best_and_worst, dpo_objective
from flow_trainer.algorithm.objectives.orw import reward_weights
from flow_trainer.algorithm.objectives.sft import best_of_group, sft_objective

ADVANTAGES = torch.tensor(
    [[0.5, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, 9.0], [-3.0, -2.0, 7.0, -1.0], [1.0, 2.0, 3.0, 4.0]],
    dtype=torch.float64,
)
USED = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)


def test_the_best_of_each_group() -> None:
    # ties to the first; none among equals; an unused sample is not chosen, however good
    expected = [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert best_of_group(ADVANTAGES, USED).tolist() == expected


def test_the_best_against_the_worst() -> None:
    expected = [[0, 1, -1, 0], [0, 0, 0, 0], [-1, 0, 0, 1], [0, 0, 0, 0]]
    assert best_and_worst(ADVANTAGES, USED).tolist() == expected


def test_reward_weights_are_normalised_in_their_group() -> None:
    weights = reward_weights(ADVANTAGES, USED, temperature=2.0)
    powers = [math.exp(2 * a) for a in (-3, -2, -1)]
    share = [3 * p / sum(powers) for p in powers]
    assert weights[2].tolist() == pytest.approx([share[0], share[1], 0, share[2]])
    assert weights[1].tolist() == pytest.approx([1, 1, 1, 0])
    assert weights[3].tolist() == [0, 0, 0, 0]
    # only differences of rewards count
    shifted = reward_weights(ADVANTAGES + 700, USED, temperature=2.0)
    torch.testing.assert_close(shifted, weights)


def test_sft_is_the_loss_of_pretraining() -> None:
    v = torch.tensor([[3.0, 1.0], [0.0, 2.0]]).view(2, 1, 1, 2).requires_grad_()
    loss, diagnostics = sft_objective(v, torch.ones_like(v), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [2.0, 0.5]
    assert diagnostics["matching_error"].tolist() == [2.0, 1.0]
    loss.sum().backward()
    assert v.grad is not None
    # 2 w (v - target) / D
    assert v.grad.flatten().tolist() == [2.0, 0.0, -0.5, 0.5]


def test_dpo_against_its_closed_form() -> None:
    v = torch.tensor([[1.0, 1.0], [2.0, 0.5], [0.5, 0.5], [0.0, 1.0]]).view(4, 1, 1, 2)
    v.requires_grad_()
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    loss, diagnostics = dpo_objective(
        v, torch.full_like(v, 0.5), torch.ones_like(v), signs, torch.tensor([0, 0, 1, 1]), beta=4.0
    )
    # d of the rows: 0, .625, .25, .5; of the reference: .25 everywhere
    margins = [-2 * ((0 - 0.25) - (0.625 - 0.25)), -2 * ((0.5 - 0.25) - (0.25 - 0.25))]
    expected = [math.log1p(math.exp(-m)) for m in margins for _ in range(2)]
    assert loss.tolist() == pytest.approx(expected)
    assert diagnostics["implied_accuracy"].tolist() == [1, 1, 0, 0]
    (loss.sum() / 2).backward()
    assert v.grad is not None
    # dL/dv = sign b/2 sigmoid(-margin) dd/dv, dd/dv = v - 1 here
    factors = [2 / (1 + math.exp(m)) for m in margins for _ in range(2)]
    gradient = torch.tensor(factors).view(4, 1, 1, 1) * signs.view(4, 1, 1, 1) * (v.detach() - 1)
    torch.testing.assert_close(v.grad, gradient)
