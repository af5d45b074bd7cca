"""The optimizer's groups and the warmup-stable-decay schedule, value by value."""

from __future__ import annotations

import math

import pytest
import torch

from fourbee.foundation.errors import UsageError
from fourbee.training.muon import Muon
from fourbee.training.optimizers import OptimizerSettings, build_optimizers, learning_rate_at


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


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_the_final_fraction_would_be_that_of_the_update_after_the_last(kind):
    made = OptimizerSettings(learning_rate=1.0, warmup_updates=0, schedule=kind, final_fraction=0.1)
    assert learning_rate_at(9, 10, made) > 0.1
    assert learning_rate_at(10, 10, made) == pytest.approx(0.1)


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
    [optimizer] = build_optimizers(parameters, settings)
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


def test_muon_moves_the_matrices_of_the_layers_and_adamw_all_else():
    parameters = {
        "model.embed_tokens.weight": torch.nn.Parameter(torch.ones(6, 4)),
        "model.layers.0.mlp.up_proj.weight": torch.nn.Parameter(torch.ones(8, 4)),
        "model.layers.0.input_layernorm.weight": torch.nn.Parameter(torch.ones(4)),
        "lm_head.weight": torch.nn.Parameter(torch.ones(6, 4)),
    }
    settings = OptimizerSettings(learning_rate=0.1, matrices="muon", matrix_rate=2.0)
    muon, adamw = build_optimizers(parameters, settings)
    assert isinstance(muon, torch.optim.Muon)
    [group] = muon.param_groups
    assert [id(p) for p in group["params"]] == [id(parameters["model.layers.0.mlp.up_proj.weight"])]
    assert (group["lr"], group["rate"]) == (0.2, 2.0)
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert others == {id(p) for p in parameters.values()} - {id(group["params"][0])}
    assert {group["rate"] for group in adamw.param_groups} == {1.0}


def test_a_step_of_muon_has_orthogonal_rows_of_the_size_of_adamw_s():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 64))
    settings = OptimizerSettings(learning_rate=0.01, matrices="muon", weight_decay=0.0)
    muon, _ = build_optimizers({"model.layers.0.x": weight}, settings)
    weight.grad = torch.randn(16, 64)
    muon.step()
    rows = weight.detach() / 0.01
    # Singular values of the step lie around 0.2 sqrt(64): its root mean square is AdamW's 0.2.
    values = torch.linalg.svdvals(rows)
    assert (values / (0.2 * 64**0.5)).min() > 0.6 and (values / (0.2 * 64**0.5)).max() < 1.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0: expected above 0"),
        ({"learning_rate": math.nan}, "learning_rate = nan: expected above 0"),
        ({"matrix_rate": -1.0}, "matrix_rate = -1.0: expected above 0"),
        ({"momentum": 1.0}, "momentum = 1.0: expected 0 or more, below 1"),
        ({"beta1": 1.5}, "beta1 = 1.5: expected 0 or more, below 1"),
        ({"beta2": -0.1}, "beta2 = -0.1: expected 0 or more, below 1"),
        ({"epsilon": -1.0}, "epsilon = -1.0: expected at least 0"),
        ({"weight_decay": math.inf}, "weight_decay = inf: expected at least 0"),
        ({"clip": -1.0}, "clip = -1.0: expected at least 0"),
        ({"warmup_updates": -1}, "warmup_updates = -1: expected at least 0"),
        ({"decay_fraction": 1.5}, "decay_fraction = 1.5: expected a share from 0 to 1"),
        ({"final_fraction": -0.5}, "final_fraction = -0.5: expected a share from 0 to 1"),
        (
            {"matrix_rate": 2.0},
            'matrix_rate = 2.0: expected 1.0, as only matrices = "muon" reads it',
        ),
        (
            {"momentum": 0.9},
            'momentum = 0.9: expected 0.95, as only matrices = "muon" reads it',
        ),
        (
            {"schedule": "cosine", "decay_fraction": 0.5},
            'decay_fraction = 0.5: expected 0.2, as only schedule = "wsd" reads it',
        ),
    ],
)
def test_settings_out_of_range_are_one_line(settings, message):
    with pytest.raises(UsageError) as error:
        OptimizerSettings(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_muon_is_torchs_but_for_the_rounding_of_its_steps(shape):
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(*shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(first.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn(*shape, generator=generator)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - first).norm()
    assert (ours - theirs).norm() <= 0.02 * moved
    states = [one.state_dict()["state"][0]["momentum_buffer"] for one in optimizers]
    assert torch.equal(*states)
