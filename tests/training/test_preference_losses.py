"""The DPO family: known answers, gradients against float64 autograd of the papers' formulas."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fourbee
from fourbee.foundation.errors import UsageError
from fourbee.training.preference_losses import (
    PREFERENCE_LOSSES,
    Answers,
    PreferenceSettings,
    dpo_loss,
    preference_values,
    unpaired_values,
)

PAIRED = [name for name, loss in PREFERENCE_LOSSES.items() if loss.paired]
LN2 = math.log(2)


def answers(seed: int, count: int = 7, dtype: torch.dtype = torch.float32) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 20, (count,), generator=generator)
    logps = -(torch.rand(count, generator=generator) * 3 + 0.05) * tokens
    reference = logps + torch.randn(count, generator=generator)
    return Answers(logps.to(dtype).requires_grad_(), tokens, reference.to(dtype))


def formula(name: str, chosen: Answers, rejected: Answers, chosen_settings: PreferenceSettings):
    """The papers' formulas as they are written, by probabilities and plain logarithms."""
    s, beta = chosen_settings, chosen_settings.beta
    w, l = chosen.logps, rejected.logps  # noqa: E741
    if name in ("ipo", "simpo", "orpo"):
        w, l = w / chosen.tokens, l / rejected.tokens  # noqa: E741
    if name == "simpo":
        return -torch.log(1 / (1 + torch.exp(-(beta * w - beta * l - s.simpo_gamma))))
    if name == "orpo":
        odds_w, odds_l = (torch.exp(one) / (1 - torch.exp(one)) for one in (w, l))
        return -w - s.orpo_lambda * torch.log(1 / (1 + odds_l / odds_w))
    if name == "ipo":
        h = (w - chosen.reference / chosen.tokens) - (l - rejected.reference / rejected.tokens)
        return (h - 1 / (2 * beta)) ** 2
    ratio_w, ratio_l = w - chosen.reference, l - rejected.reference
    up = 1 / (1 + torch.exp(-beta * (ratio_w - ratio_l)))  # probability that chosen wins
    eps = s.label_smoothing
    return {
        "sigmoid": -torch.log(up),
        "cdpo": -(1 - eps) * torch.log(up) - eps * torch.log(1 - up),
        "robust": (-(1 - eps) * torch.log(up) + eps * torch.log(1 - up)) / (1 - 2 * eps),
        "hinge": torch.clamp(1 - beta * (ratio_w - ratio_l), min=0),
        "apo_zero": 1 - torch.sigmoid(beta * ratio_w) + torch.sigmoid(beta * ratio_l),
        "apo_down": torch.sigmoid(beta * ratio_w) + 1 - up,
    }[name]


# What a loss alone reads.
CONSTANTS = {
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "simpo": {"simpo_gamma": 0.4},
    "orpo": {"orpo_lambda": 0.7},
    "kto": {"desirable_weight": 1.2, "undesirable_weight": 1.3},
}


def some_settings(name: str) -> PreferenceSettings:
    return PreferenceSettings(loss=name, beta=0.3, **CONSTANTS.get(name, {}))


# ---- known answers


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigmoid", LN2), ("cdpo", LN2), ("robust", LN2), ("hinge", 1.0), ("ipo", 25.0),
     ("apo_zero", 1.0), ("apo_down", 1.0)],
)  # fmt: skip
def test_the_policy_equal_to_the_reference_has_the_known_loss(name, expected):
    chosen, rejected = (
        replace(one, reference=one.logps.detach()) for one in (answers(0), answers(1))
    )
    chosen_settings = PreferenceSettings(loss=name, beta=0.1, **CONSTANTS.get(name, {}))
    values = preference_values(chosen, rejected, chosen_settings)
    torch.testing.assert_close(values.loss, torch.full((7,), expected), rtol=0, atol=1e-6)
    assert values.accurate.tolist() == [0.5] * 7
    assert not values.margins.any()


def test_losses_without_a_reference_have_known_values_at_equal_answers():
    same = Answers(torch.tensor([-4.0]), torch.tensor([4]))
    simpo = PreferenceSettings(loss="simpo", beta=2.0, simpo_gamma=1.0)
    found = preference_values(same, same, simpo).loss.item()
    assert found == pytest.approx(math.log1p(math.e), abs=1e-6)
    orpo = PreferenceSettings(loss="orpo", orpo_lambda=0.1)
    assert preference_values(same, same, orpo).loss.item() == pytest.approx(1 + 0.1 * LN2, abs=1e-6)


def test_kto_is_half_of_the_weight_at_the_baseline():
    chosen_settings = PreferenceSettings(loss="kto", desirable_weight=1.5, undesirable_weight=0.5)
    at_baseline = Answers(
        torch.tensor([-3.0, -3.0]), torch.tensor([2, 2]), torch.tensor([-5.0] * 2)
    )
    desirable = torch.tensor([True, False])
    values = unpaired_values(at_baseline, desirable, chosen_settings, torch.tensor(2.0))
    assert values.loss.tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    assert values.chosen_rewards.tolist() == pytest.approx([0.2], abs=1e-6)
    assert values.rejected_rewards.tolist() == pytest.approx([0.2], abs=1e-6)


def test_dpo_has_its_known_gradient():
    """d/d chosen = -beta sigmoid(-beta delta), and the opposite by rejected."""
    chosen, rejected = (answers(seed, dtype=torch.float64) for seed in (0, 1))
    loss = dpo_loss(chosen.logps, rejected.logps, chosen.reference, rejected.reference, beta=0.3)
    loss.backward()
    delta = (chosen.logps - rejected.logps) - (chosen.reference - rejected.reference)
    expected = 0.3 * torch.sigmoid(-0.3 * delta.detach()) / 7
    torch.testing.assert_close(chosen.logps.grad, -expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rejected.logps.grad, expected, rtol=0, atol=1e-12)


def test_dpo_is_public_and_the_mean_of_its_row():
    chosen, rejected = answers(0), answers(1)
    found = fourbee.dpo_loss(
        chosen.logps, rejected.logps, chosen.reference, rejected.reference, beta=0.3
    )
    values = preference_values(chosen, rejected, PreferenceSettings(beta=0.3))
    torch.testing.assert_close(found, values.loss.mean())
    assert dpo_loss(*[torch.zeros(3)] * 4).item() == pytest.approx(LN2, abs=1e-7)


def test_dpo_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "fourbee.training.preference_losses")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError) as error:
        fourbee.dpo_loss  # noqa: B018
    assert str(error.value) == (
        "fourbee.dpo_loss needs torch, which is not installed: pip install 'fourbee[train]'"
    )


@pytest.mark.parametrize(
    ("shapes", "beta", "message"),
    [
        (
            [(3,), (3,), (3,), (2,)],
            0.1,
            r"\(3,\), \(2,\)\]: expected four",
        ),
        ([(0,)] * 4, 0.1, "1 or more"),
        ([(2, 2)] * 4, 0.1, r"expected four of one shape \[pairs\]"),
        ([()] * 4, 0.1, r"expected four of one shape \[pairs\]"),
        ([(3,)] * 4, 0.0, "beta = 0.0: expected a number above 0"),
        ([(3,)] * 4, math.nan, "beta = nan: expected a number above 0"),
    ],
)
def test_dpo_refuses_what_is_not_pairs(shapes, beta, message):
    with pytest.raises(UsageError, match=message):
        dpo_loss(*[torch.zeros(shape) for shape in shapes], beta=beta)


# ---- against the papers' formulas


@pytest.mark.parametrize("name", PAIRED)
def test_values_and_gradients_are_those_of_the_paper(name):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        mine = [answers(seed, dtype=dtype) for seed in (0, 1)]
        found = preference_values(*mine, some_settings(name)).loss
        found.sum().backward()
        exact = [answers(seed, dtype=torch.float64) for seed in (0, 1)]
        expected = formula(name, *exact, some_settings(name))
        expected.sum().backward()
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        for one, other in zip(mine, exact, strict=True):
            torch.testing.assert_close(
                one.logps.grad.double(), other.logps.grad, rtol=tolerance, atol=1e-6
            )


def test_kto_is_the_papers_with_a_baseline_that_is_never_negative():
    chosen_settings = PreferenceSettings(loss="kto", beta=0.3, undesirable_weight=1.3)
    desirable = torch.tensor([True, False] * 3 + [True])
    for baseline, counted in ((0.8, 0.8), (-0.8, 0.0)):
        mine = answers(0, dtype=torch.float64)
        level = torch.tensor(baseline, dtype=torch.float64, requires_grad=True)
        found = unpaired_values(mine, desirable, chosen_settings, level).loss
        found.sum().backward()
        ratio = (mine.logps - mine.reference).detach().requires_grad_()
        wanted = 1.0 - torch.sigmoid(0.3 * (ratio - counted))
        unwanted = 1.3 * (1 - torch.sigmoid(0.3 * (counted - ratio)))
        expected = torch.where(desirable, wanted, unwanted)
        expected.sum().backward()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(mine.logps.grad, ratio.grad, rtol=0, atol=1e-12)
        assert level.grad is None


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_the_sft_weight_adds_the_cross_entropy_of_good_answers(name):
    chosen_settings = some_settings(name)
    with_sft = replace(chosen_settings, sft_weight=0.5)
    chosen, rejected = answers(0), answers(1)
    mean = -0.5 * chosen.logps / chosen.tokens
    if PREFERENCE_LOSSES[name].paired:
        plain, found = (preference_values(chosen, rejected, s) for s in (chosen_settings, with_sft))
    else:
        desirable = torch.arange(7) < 3
        mean = mean * desirable
        plain, found = (
            unpaired_values(chosen, desirable, s, torch.tensor(0.1))
            for s in (chosen_settings, with_sft)
        )
    torch.testing.assert_close(found.loss, plain.loss + mean)


def test_rewards_say_who_wins():
    chosen = Answers(torch.tensor([-1.0, -5.0, -3.0]), torch.ones(3), torch.tensor([-2.0] * 3))
    rejected = Answers(torch.tensor([-3.0] * 3), torch.ones(3), torch.tensor([-2.0] * 3))
    values = preference_values(chosen, rejected, PreferenceSettings(beta=0.5))
    assert values.chosen_rewards.tolist() == [0.5, -1.5, -0.5]
    assert values.rejected_rewards.tolist() == [-0.5] * 3
    assert values.accurate.tolist() == [1.0, 0.0, 0.5]
    assert not values.margins.requires_grad


# ---- properties


def both(name: str, w: Tensor, l: Tensor):  # noqa: E741
    """Loss, and gradients by the two scores, of one-token answers over a reference of zeros."""
    w, l = w.clone().requires_grad_(), l.clone().requires_grad_()  # noqa: E741
    ones, zeros = torch.ones(len(w)), torch.zeros(len(w))
    loss = preference_values(
        Answers(w, ones, zeros), Answers(l, ones, zeros), some_settings(name)
    ).loss
    loss.sum().backward()
    return loss.detach(), w.grad, l.grad


@pytest.mark.parametrize("name", PAIRED)
def test_extremes_stay_finite(name):
    w = torch.tensor([-1e4, 0.0, 0.0, -1e4, -1e-9])
    l = torch.tensor([0.0, -1e4, 0.0, -1e4, -1e-9])  # noqa: E741
    for values in both(name, w, l):
        assert torch.isfinite(values).all()


def test_extremes_of_kto_stay_finite():
    logps = torch.tensor([-1e4, 0.0, -1e4, 0.0], requires_grad=True)
    one = Answers(logps, torch.ones(4), torch.tensor([0.0, -1e4, 0.0, -1e4]))
    desirable = torch.tensor([True, True, False, False])
    loss = unpaired_values(one, desirable, PreferenceSettings("kto"), torch.tensor(1e4)).loss
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logps.grad).all()


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "simpo", "orpo", "apo_zero"])
@settings(max_examples=25, deadline=None)
@given(st.floats(-60, -0.01), st.floats(-60, -0.01))
def test_chosen_is_pulled_up_and_rejected_pushed_down(name, chosen, rejected):
    _, by_chosen, by_rejected = both(name, torch.tensor([chosen]), torch.tensor([rejected]))
    assert by_rejected.item() >= 0 >= by_chosen.item()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=2, max_size=6), st.floats(-5, 5))
def test_dpo_sees_only_differences(values, shift):
    w = torch.tensor(values, dtype=torch.float64)
    l = w.flip(0)  # noqa: E741
    zeros = torch.zeros_like(w)
    plain = dpo_loss(w, l, zeros, zeros)
    torch.testing.assert_close(dpo_loss(w + shift, l + shift, zeros, zeros), plain)
    torch.testing.assert_close(dpo_loss(w + shift, l, zeros + shift, zeros), plain)


# ---- the settings and the table


def test_the_table_says_what_each_loss_needs():
    def names(attribute: str) -> set[str]:
        return {name for name, loss in PREFERENCE_LOSSES.items() if getattr(loss, attribute)}

    assert names("averaged") == {"ipo", "simpo", "orpo"}
    assert set(PREFERENCE_LOSSES) - names("reference") == {"simpo", "orpo"}
    assert set(PREFERENCE_LOSSES) - names("paired") == {"kto"}
    no_reference = replace(answers(0), reference=None)
    for name in ("simpo", "orpo"):
        preference_values(no_reference, no_reference, some_settings(name))


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        ("loss", "dpo", "expected one of sigmoid, cdpo"),
        ("beta", 0.0, "above 0"),
        ("beta", math.inf, "above 0"),
        ("label_smoothing", 0.5, "below 0.5"),
        ("label_smoothing", -0.1, "0 or more"),
        ("simpo_gamma", -1.0, "0 or more"),
        ("orpo_lambda", -1.0, "0 or more"),
        ("desirable_weight", -1.0, "0 or more"),
        ("undesirable_weight", math.nan, "0 or more"),
        ("sft_weight", -0.1, "0 or more"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key, value, form):
    with pytest.raises(UsageError, match=form) as caught:
        PreferenceSettings(**{key: value})
    assert str(caught.value).startswith(f"{key} = ")


def test_a_constant_of_other_losses_is_refused():
    """A constant that changes nothing would be a setting that is silently ignored."""
    for own, constants in CONSTANTS.items():
        for name, (key, value) in product(PREFERENCE_LOSSES, constants.items()):
            if key in CONSTANTS.get(name, {}):
                continue
            with pytest.raises(UsageError, match=f'^{key} = {value}: .* only .*loss = "{own}"'):
                PreferenceSettings(loss=name, **{key: value})
    with pytest.raises(UsageError) as error:
        PreferenceSettings(label_smoothing=0.1)
    assert str(error.value) == (
        'label_smoothing = 0.1: expected 0.0, as only loss = "cdpo" or loss = "robust" reads it'
    )


def test_every_setting_reaches_some_loss():
    changed = {"beta": 0.5, "label_smoothing": 0.2, "simpo_gamma": 0.9, "orpo_lambda": 0.2,
               "desirable_weight": 0.3, "undesirable_weight": 0.3, "sft_weight": 0.2}  # fmt: skip
    assert set(changed) == {field.name for field in fields(PreferenceSettings)} - {"loss"}
    desirable = torch.tensor([True] * 3 + [False] * 4)

    def total(one: PreferenceSettings) -> float:
        if PREFERENCE_LOSSES[one.loss].paired:
            return preference_values(answers(0), answers(1), one).loss.sum().item()
        level = torch.tensor(0.3)
        return unpaired_values(answers(0), desirable, one, level).loss.sum().item()

    for key, value in changed.items():
        own = [name for name, constants in CONSTANTS.items() if key in constants]
        plain = [some_settings(name) for name in own or PREFERENCE_LOSSES]
        assert any(total(replace(one, **{key: value})) != total(one) for one in plain), key
