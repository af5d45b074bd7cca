"""The optimizer's groups and the warmup-stable-decay schedule, value by value."""

from __future__ import annotations

import pytest
import torch

from fourbee.training.optimizers import OptimizerSettings, build_adamw, learning_rate_at


def schedule(total: int, **settings: float) -> list[float]:
    made = OptimizerSettings(learning_rate=1.0, **settings)
    return [learning_rate_at(update, total, made) for update in range(total)]


def test_warm_up_then_flat_then_linear_decay():
    rates = schedule(20, warmup_updates=4, decay_fraction=0.25)
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:16] == [1.0] * 12
    assert rates[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_decay_ends_near_the_final_fraction():
    rates = schedule(20, warmup_updates=0, decay_fraction=0.5, final_fraction=0.1)
    assert rates[:11] == [1.0] * 11
    assert rates[11:] == pytest.approx([0.1 + 0.9 * left / 10 for left in range(9, 0, -1)])
    assert min(rates) > 0.1


def test_without_warm_up_or_decay_the_rate_is_flat():
    assert schedule(5, warmup_updates=0, decay_fraction=0.0) == [1.0] * 5


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert schedule(3, warmup_updates=10, decay_fraction=0.5) == pytest.approx([0.1, 0.2, 0.3])


def test_no_rate_is_zero_or_above_the_peak():
    for warmup in (0, 1, 7, 30):
        for decay in (0.0, 0.1, 0.5, 1.0):
            rates = schedule(30, warmup_updates=warmup, decay_fraction=decay)
            assert all(0 < rate <= 1 for rate in rates)
            peak = rates.index(max(rates))
            assert rates[:peak] == sorted(rates[:peak])
            assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_matrices_decay_and_vectors_do_not():
    parameters = {
        "embedding": torch.nn.Parameter(torch.ones(4, 3)),
        "norm": torch.nn.Parameter(torch.ones(3)),
        "scale": torch.nn.Parameter(torch.ones(())),
    }
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.5, beta1=0.8, epsilon=1e-6)
    optimizer = build_adamw(parameters, settings)
    matrices, vectors = optimizer.param_groups
    assert [id(p) for p in matrices["params"]] == [id(parameters["embedding"])]
    assert {id(p) for p in vectors["params"]} == {id(parameters[n]) for n in ("norm", "scale")}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    assert {(g["lr"], *g["betas"], g["eps"]) for g in optimizer.param_groups} == {
        (0.1, 0.8, 0.95, 1e-6)
    }
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameters["embedding"], torch.tensor(0.95))
    assert torch.equal(parameters["norm"], torch.ones(3))
