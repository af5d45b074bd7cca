"""The loss of a reward model: known answers, gradients, what centring does."""

from __future__ import annotations

import math

import pytest
import torch

from fourbee.foundation.errors import UsageError
from fourbee.training.reward_losses import reward_accuracy, reward_values


def test_equal_rewards_cost_ln_2_and_are_half_right():
    equal = torch.tensor([1.5, -2.0, 0.0])
    torch.testing.assert_close(
        reward_values(equal, equal), torch.full((3,), math.log(2)), rtol=0, atol=1e-6
    )
    assert reward_accuracy(equal, equal).tolist() == [0.5] * 3
    assert reward_accuracy(equal, torch.zeros(3)).tolist() == [1.0, 0.0, 0.5]


def test_values_and_gradients_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    margin = torch.rand(9, generator=generator, dtype=torch.float64)
    mine = [one.clone().requires_grad_() for one in (chosen, rejected)]
    found = reward_values(*mine, margin, centring=0.01)
    found.sum().backward()
    up = torch.sigmoid(chosen - rejected - margin)
    torch.testing.assert_close(found, -up.log() + 0.01 * (chosen + rejected) ** 2)
    pull = 0.02 * (chosen + rejected)
    torch.testing.assert_close(mine[0].grad, -(1 - up) + pull, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine[1].grad, (1 - up) + pull, rtol=0, atol=1e-12)


def test_a_constant_is_free_without_centring_and_costs_with_it():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([-1.0])
    plain = reward_values(chosen, rejected)
    torch.testing.assert_close(reward_values(chosen + 7, rejected + 7), plain)
    assert reward_values(chosen + 7, rejected + 7, centring=0.01) > plain + 1


def test_extremes_stay_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    values = reward_values(chosen, -chosen.detach())
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_a_negative_centring_is_refused():
    with pytest.raises(UsageError, match=r"centring = -0.1: expected 0 or more"):
        reward_values(torch.zeros(1), torch.zeros(1), centring=-0.1)
