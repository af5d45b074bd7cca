"""Policy gradients from groups of sampled answers (GRPO and its relatives), as plain functions.

Everything is per token: `[targets]` of a pack, document after document. A token's weight carries
the mean over the whole update, so that losses of packs add up to the update's however it is split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.training.checks import expect

# Log-ratios are held within this, which keeps exponentials and gradients finite.
_MOST_NATS = 20.0
# Added to a group's standard deviation: where all rewards are equal, advantages are 0.
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class PolicySettings:
    """How advantages become a loss. The defaults are GRPO's (Shao et al. 2024), without its KL."""

    scale: Literal["std", "none"] = "std"  # of a group's advantages; none: Dr. GRPO
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO
    clip_low: float = 0.2
    clip_high: float = 0.2  # above clip_low: DAPO's clip-higher
    aggregation: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    longest: int = 0  # tokens that an answer may have; dr_grpo's constant, needed by it alone
    kl_weight: float = 0.0  # of the KL to the reference
    gap_cap: float = 0.0  # most weight of a token for the engine-trainer gap; 0: not weighted

    def __post_init__(self) -> None:
        expect(0 <= self.clip_low < 1, "clip_low", self.clip_low, "0 or more, below 1")
        for name in ("clip_high", "kl_weight", "gap_cap"):
            value = getattr(self, name)
            expect(0 <= value < math.inf, name, value, "0 or more")
        needed = self.aggregation == "dr_grpo"
        expect(
            self.longest >= int(needed), "longest", self.longest,
            "the most tokens of an answer, which aggregation dr_grpo divides by" if needed
            else "0 or more",
        )  # fmt: skip


@dataclass(frozen=True)
class PolicyTokens:
    """The targets of a pack, `[targets]` each; all but `logps` are constants."""

    logps: Tensor  # of the policy in training
    old_logps: Tensor  # of the policy that sampled, as the trainer computes them
    advantages: Tensor
    weights: Tensor  # see `sequence_weights`
    sequences: Sequence[int]  # targets of each document
    reference_logps: Tensor | None = None  # needed where kl_weight is not 0, else only measured
    engine_logps: Tensor | None = None  # as the engine reported them; needed where gap_cap is not 0


@dataclass(frozen=True)
class PolicyLoss:
    """Sums over the targets of a part of an update; all but the loss for statistics."""

    loss: Tensor  # weighted sum, differentiable
    clipped: Tensor  # targets whose gradient the clip takes away
    approximate_kl: Tensor  # to the policy that sampled, sum of k3
    reference_kl: Tensor  # to the reference, sum of k3; 0 without one
    ratio_sum: Tensor


def group_advantages(rewards: Tensor, scale: Literal["std", "none"] = "std") -> Tensor:
    """Advantages `[groups, answers]` of rewards `[groups, answers]`: less the group's mean.

    With "std" also divided by the group's standard deviation (Shao et al. 2024, section 4.1.2; of a
    sample, and 1e-4 more); "none" is Dr. GRPO (Liu et al. 2025). Raises UsageError for groups of
    one answer, which have nothing to be compared with.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise UsageError(
            f"rewards of shape {tuple(rewards.shape)}: expected [groups, 2 or more answers]"
        )
    centred = rewards - rewards.mean(-1, keepdim=True)
    if scale == "none":
        return centred
    return centred / (rewards.std(-1, keepdim=True) + _LEAST_SPREAD)


def sequence_weights(tokens: Tensor, settings: PolicySettings) -> Tensor:
    """What each token of a sequence weighs, `[sequences]`, from the tokens of ALL of an update.

    grpo: a mean over a sequence's tokens, then over sequences. dr_grpo: a sum over tokens by a
    constant, `longest`, then a mean over sequences (Liu et al. 2025). dapo: a mean over all tokens
    (Yu et al. 2025).
    """
    if settings.aggregation == "grpo":
        return 1 / (tokens * len(tokens))
    divisor = tokens.sum()
    if settings.aggregation == "dr_grpo":
        divisor = torch.full_like(divisor, settings.longest * len(tokens))
    return (1 / divisor).expand(len(tokens))


def policy_loss(tokens: PolicyTokens, settings: PolicySettings) -> PolicyLoss:
    """The clipped surrogate (PPO, Schulman et al. 2017) with asymmetric bounds (DAPO), summed.

    With ratio "sequence" all tokens of a sequence share its length-normalised ratio (GSPO, Zheng et
    al. 2025). The KL to the reference is estimated by k3, `exp(d) - d - 1` with
    `d = reference - policy` (Schulman 2020). With `gap_cap` every token's surrogate is weighted by
    `exp(old - engine)`, at most the cap (truncated importance sampling, Yao et al. 2025).
    """
    log_ratios = tokens.logps - tokens.old_logps
    if settings.ratio == "sequence":
        log_ratios = _mean_of_sequence(log_ratios, tokens.sequences)
    ratios = log_ratios.clamp(-_MOST_NATS, _MOST_NATS).exp()
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    advantages = tokens.advantages
    values = -torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)
    if settings.gap_cap:
        assert tokens.engine_logps is not None
        values = values * gap_weights(tokens.old_logps, tokens.engine_logps, settings.gap_cap)
    reference_kl = torch.zeros_like(values)
    assert tokens.reference_logps is not None or not settings.kl_weight
    if tokens.reference_logps is not None:
        reference_kl = k3(tokens.logps, tokens.reference_logps)
    if settings.kl_weight:
        values = values + settings.kl_weight * reference_kl
    with torch.no_grad():
        clipped = ((ratios < low) & (advantages < 0)) | ((ratios > high) & (advantages > 0))
        kl = k3(tokens.old_logps, tokens.logps)
    return PolicyLoss(
        loss=(tokens.weights * values).sum(),
        clipped=clipped.sum(),
        approximate_kl=kl.sum(),
        reference_kl=reference_kl.detach().sum(),
        ratio_sum=ratios.detach().sum(),
    )


def k3(logps: Tensor, other_logps: Tensor) -> Tensor:
    """Schulman's estimate of `KL(policy || other)` at tokens that the policy sampled; never < 0."""
    difference = (other_logps - logps).clamp(max=_MOST_NATS)
    return difference.expm1() - difference


def gap_weights(old_logps: Tensor, engine_logps: Tensor, cap: float) -> Tensor:
    """`exp(old - engine)`, at most `cap`: how much likelier the trainer finds what was sampled."""
    return (old_logps - engine_logps).detach().clamp(max=_MOST_NATS).exp().clamp(max=cap)


def _mean_of_sequence(values: Tensor, sequences: Sequence[int]) -> Tensor:
    """Each value replaced by the mean of its sequence."""
    parts = torch.split(values, list(sequences))
    return torch.cat([part.mean().expand(len(part)) for part in parts])
