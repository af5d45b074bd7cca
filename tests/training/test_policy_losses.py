"""Policy losses: the first step's known answers, float64 loops, sums that do not mind the split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.training.policy_losses import (
    PolicySettings,
    PolicyTokens,
    gap_weights,
    group_advantages,
    k3,
    policy_loss,
    sequence_weights,
)

LENGTHS = [4, 1, 7, 3, 2, 5]
GROUPS = 2
VARIANTS = {
    "grpo": PolicySettings(kl_weight=0.04),
    "dr_grpo": PolicySettings(scale="none", aggregation="dr_grpo", longest=9),
    "dapo": PolicySettings(aggregation="dapo", clip_high=0.28),
    "gspo": PolicySettings(ratio="sequence", clip_low=0.01, clip_high=0.02),
    "everything": PolicySettings(
        ratio="sequence",
        clip_low=0.1,
        clip_high=0.05,
        kl_weight=0.1,
        gap_cap=1.1,
        aggregation="dapo",
    ),
}


def tokens_of(chosen: PolicySettings, spread: float = 0.3) -> PolicyTokens:
    """Six sequences in two groups, float64, with a leaf of log-probabilities."""
    generator = torch.Generator().manual_seed(3)
    total = sum(LENGTHS)

    def noise(scale: float) -> Tensor:
        return torch.randn(total, generator=generator, dtype=torch.float64) * scale

    logps = -noise(1.0).abs() - 0.1
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 2.0], dtype=torch.float64)
    advantages = group_advantages(rewards.view(GROUPS, -1), chosen.scale).flatten()
    counts = torch.tensor(LENGTHS)
    weights = sequence_weights(counts.double(), chosen)
    return PolicyTokens(
        logps=(logps + noise(spread)).requires_grad_(),
        old_logps=logps,
        advantages=advantages.repeat_interleave(counts),
        weights=weights.repeat_interleave(counts),
        sequences=LENGTHS,
        reference_logps=logps + noise(0.2),
        engine_logps=logps + noise(0.1),
    )


def part(whole: PolicyTokens, first: int, last: int) -> PolicyTokens:
    """The sequences from `first` to before `last`, as a pack of their own."""
    rows = slice(sum(LENGTHS[:first]), sum(LENGTHS[:last]))
    columns = ("logps", "old_logps", "advantages", "weights", "reference_logps", "engine_logps")
    return replace(
        whole,
        **{name: getattr(whole, name)[rows] for name in columns},
        sequences=LENGTHS[first:last],
    )


def loop(tokens: PolicyTokens, chosen: PolicySettings) -> Tensor:
    """The papers' objectives, sequence after sequence and token after token."""
    sequences, start = [], 0
    for length in LENGTHS:
        rows = range(start, start + length)
        start += length
        mean = sum(tokens.logps[t] - tokens.old_logps[t] for t in rows) / length
        values = []
        for t in rows:
            log_ratio = tokens.logps[t] - tokens.old_logps[t]
            ratio = torch.exp(mean if chosen.ratio == "sequence" else log_ratio)
            held = torch.clamp(ratio, 1 - chosen.clip_low, 1 + chosen.clip_high)
            gain = torch.min(ratio * tokens.advantages[t], held * tokens.advantages[t])
            if chosen.gap_cap:
                gap = math.exp(tokens.old_logps[t] - tokens.engine_logps[t])
                gain = gain * min(gap, chosen.gap_cap)
            apart = tokens.reference_logps[t] - tokens.logps[t]
            values.append(chosen.kl_weight * (torch.exp(apart) - apart - 1) - gain)
        sequences.append(values)
    if chosen.aggregation == "grpo":
        return sum(sum(values) / len(values) for values in sequences) / len(sequences)
    total = sum(sum(values) for values in sequences)
    if chosen.aggregation == "dr_grpo":
        return total / (chosen.longest * len(sequences))
    return total / sum(LENGTHS)


@pytest.mark.parametrize("chosen", VARIANTS.values(), ids=VARIANTS.keys())
def test_values_and_gradients_are_those_of_a_loop(chosen):
    mine, other = tokens_of(chosen), tokens_of(chosen)
    found, expected = policy_loss(mine, chosen), loop(other, chosen)
    found.loss.backward()
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.logps.grad, other.logps.grad, rtol=0, atol=1e-12)
    assert 0 < found.clipped < sum(LENGTHS)


@pytest.mark.parametrize("chosen", VARIANTS.values(), ids=VARIANTS.keys())
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, len(LENGTHS) - 1))
def test_any_split_into_packs_is_the_same_update(chosen, cut):
    whole, split = tokens_of(chosen), tokens_of(chosen)
    together = policy_loss(whole, chosen)
    apart = [policy_loss(part(split, *ends), chosen) for ends in ((0, cut), (cut, len(LENGTHS)))]
    together.loss.backward()
    for one in apart:
        one.loss.backward()
    torch.testing.assert_close(whole.logps.grad, split.logps.grad, rtol=0, atol=1e-14)
    for name in ("loss", "clipped", "approximate_kl", "reference_kl", "ratio_sum"):
        torch.testing.assert_close(
            sum(getattr(one, name) for one in apart), getattr(together, name)
        )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_the_first_step_has_the_known_answers(name):
    """Policy == sampler: ratios are 1, the KL is 0, the gradient is not."""
    chosen = replace(VARIANTS[name], kl_weight=0.0)
    tokens = tokens_of(chosen, spread=0.0)
    found = policy_loss(tokens, chosen)
    found.loss.backward()
    expected = -(tokens.weights * tokens.advantages)
    torch.testing.assert_close(found.loss.detach(), expected.sum(), rtol=0, atol=1e-12)
    if name in ("grpo", "gspo"):  # each sequence weighs the same, and advantages sum to 0
        assert found.loss.item() == pytest.approx(0, abs=1e-12)
    if name == "gspo":
        torch.testing.assert_close(tokens.logps.grad, expected, rtol=0, atol=1e-12)
    else:
        assert torch.equal(tokens.logps.grad, expected)
    assert found.ratio_sum == sum(LENGTHS)
    assert found.clipped == found.approximate_kl == 0
    # Known, the KL to the reference is measured, though it weighs nothing.
    assert tokens.reference_logps is not None
    expected_kl = k3(tokens.logps.detach(), tokens.reference_logps).sum()
    torch.testing.assert_close(found.reference_kl, expected_kl)


def test_a_clip_takes_the_gradient_away_only_where_the_policy_has_gone_far_enough():
    chosen = PolicySettings(clip_low=0.2, clip_high=0.3)
    ratios = torch.tensor([0.7, 0.7, 0.9, 1.25, 1.4, 1.4], dtype=torch.float64)
    logps = ratios.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    zeros, ones = torch.zeros_like(ratios), torch.ones_like(ratios)
    found = policy_loss(PolicyTokens(logps, zeros, advantages, ones, [6]), chosen)
    found.loss.backward()
    assert (logps.grad == 0).tolist() == [False, True, False, False, True, False]
    assert found.clipped == 2
    assert found.loss.item() == pytest.approx(-(0.7 - 0.8 + 0.9 + 1.25 + 1.3 - 1.4))


def test_extremes_stay_finite():
    for chosen in VARIANTS.values():
        for sign in (1.0, -1.0):
            logps = torch.tensor([-1e4, -1.0, -1e4, -1.0], requires_grad=True)
            others = torch.tensor([-1.0, -1e4, -1.0, -1e4])
            advantages = torch.tensor([sign, sign, -sign, 0.0])
            tokens = PolicyTokens(
                logps, others, advantages, torch.ones(4), [1, 1, 1, 1], others, others
            )
            found = policy_loss(tokens, chosen)
            found.loss.backward()
            assert torch.isfinite(found.loss)
            assert torch.isfinite(logps.grad).all()


# ---- the pieces


def test_advantages_of_a_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    centred = group_advantages(rewards, "none")
    assert centred[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    scaled = group_advantages(rewards, "std")
    torch.testing.assert_close(scaled[0], centred[0] / (0.5 + 1e-4))
    assert scaled[1].abs().max() < 1e-9  # all the same: nothing to learn
    for shape in ((4,), (4, 1)):
        with pytest.raises(UsageError, match="2 or more answers"):
            group_advantages(torch.zeros(shape))


def test_k3_is_an_unbiased_and_positive_estimate():
    generator = torch.Generator().manual_seed(0)
    policy, other = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    estimates = k3(policy, other)
    assert (estimates >= 0).all()
    exact = (policy.exp() * (policy - other)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)
    assert not k3(policy, policy).any()


def test_gap_weights_are_capped_constants():
    old = torch.tensor([0.0, 0.0, 1e4], requires_grad=True)
    weights = gap_weights(old, torch.tensor([0.5, -3.0, 0.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([math.exp(-0.5), 2.0, 2.0])
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_low": 1.0}, "clip_low = 1.0: expected 0 or more, below 1"),
        ({"clip_high": -0.1}, "clip_high = -0.1: expected 0 or more"),
        ({"kl_weight": math.nan}, "kl_weight = nan: expected 0 or more"),
        ({"gap_cap": -1.0}, "gap_cap = -1.0: expected 0 or more"),
        ({"longest": -1}, "longest = -1: expected 0 or more"),
        ({"aggregation": "dr_grpo"}, "longest = 0: expected the most tokens of an answer"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(UsageError, match=message):
        PolicySettings(**wrong)
