"""Losses on preferences, as plain functions of log-probabilities: DPO and its family.

A loss sees one *score* an answer: its log-probability, less the reference's where the loss has one
(the log-ratio), divided by its tokens where the loss averages. The table says which. Values are
per pair, for the caller to sum over an update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fourbee.foundation.errors import UsageError
from fourbee.training.checks import expect, read_only_with

PreferenceLossName = Literal[
    "sigmoid", "cdpo", "robust", "hinge", "ipo", "simpo", "orpo", "apo_zero", "apo_down", "kto"
]


@dataclass(frozen=True)
class PreferenceSettings:
    """Which loss, and its constants; one that names losses is refused with all others."""

    loss: PreferenceLossName = "sigmoid"
    beta: float = 0.1  # scale of the scores; IPO's tau
    label_smoothing: float = 0.0  # share of pairs that are the wrong way round: cdpo, robust
    simpo_gamma: float = 0.5  # margin that the chosen answer has to win by: simpo
    orpo_lambda: float = 0.1  # weight of the odds ratio: orpo
    desirable_weight: float = 1.0  # kto
    undesirable_weight: float = 1.0  # kto
    sft_weight: float = 0.0  # adds this times the chosen answer's mean cross-entropy a token

    def __post_init__(self) -> None:
        expect(
            self.loss in PREFERENCE_LOSSES, "loss", repr(self.loss),
            f"one of {', '.join(PREFERENCE_LOSSES)}",
        )  # fmt: skip
        expect(0 < self.beta < math.inf, "beta", self.beta, "a number above 0")
        smoothing = self.label_smoothing
        expect(0 <= smoothing < 0.5, "label_smoothing", smoothing, "0 or more, below 0.5")
        weights = ("simpo_gamma", "orpo_lambda", "desirable_weight", "undesirable_weight")
        for name in (*weights, "sft_weight"):
            value = getattr(self, name)
            expect(0 <= value < math.inf, name, value, "0 or more")
        read_only_with(self, "loss", ("cdpo", "robust"), "label_smoothing")
        read_only_with(self, "loss", ("simpo",), "simpo_gamma")
        read_only_with(self, "loss", ("orpo",), "orpo_lambda")
        read_only_with(self, "loss", ("kto",), "desirable_weight", "undesirable_weight")


@dataclass(frozen=True)
class PreferenceLoss:
    """One row of the table.

    `values(chosen, rejected, settings)` gives a value a pair. An unpaired loss is called as
    `values(scores, desirable, settings, baseline)` and gives a value an answer.
    """

    values: Callable[..., Tensor]
    reference: bool = True  # scores are log-ratios to a reference model
    averaged: bool = False  # scores are means over an answer's tokens
    paired: bool = True


@dataclass(frozen=True)
class Answers:
    """Answers of one side or, unpaired, of both: one number each, `[answers]`."""

    logps: Tensor  # summed over the answer's tokens
    tokens: Tensor
    reference: Tensor | None = None  # the reference model's `logps`

    def scores(self, loss: PreferenceLoss) -> Tensor:
        """What `loss` compares."""
        scores = self.logps
        if loss.reference:
            assert self.reference is not None
            scores = scores - self.reference
        return scores / self.tokens if loss.averaged else scores


@dataclass(frozen=True)
class PreferenceValues:
    """Per-pair values of a part of an update; the statistics carry no gradient."""

    loss: Tensor  # [pairs], or [answers] unpaired; differentiable
    chosen_rewards: Tensor  # [chosen]: implicit rewards, beta times the score
    rejected_rewards: Tensor  # [rejected]

    @property
    def margins(self) -> Tensor:
        """How much more the chosen answer is rewarded, `[pairs]`."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accurate(self) -> Tensor:
        """1 where the chosen answer is rewarded more, 1/2 at a tie, else 0; `[pairs]`."""
        return wins(self.margins)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Direct Preference Optimization (Rafailov et al. 2023): mean of `-log sigmoid(beta * delta)`.

    `delta` is the policy's log-ratio of chosen to rejected less the reference's. Each argument is
    `[pairs]`: log-probabilities of whole answers, summed over their tokens. Raises UsageError for
    shapes that differ, for no pairs and for a beta that is not above 0.
    """
    shapes = [
        tuple(one.shape)
        for one in (
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
    ]
    if len(shapes[0]) != 1 or not shapes[0][0] or len(set(shapes)) > 1:
        raise UsageError(
            f"log-probabilities of shapes {shapes}: expected four of one shape [pairs], 1 or more"
        )
    settings = PreferenceSettings(beta=beta)
    return _sigmoid(
        policy_chosen_logps - reference_chosen_logps,
        policy_rejected_logps - reference_rejected_logps,
        settings,
    ).mean()


def preference_values(
    chosen: Answers, rejected: Answers, settings: PreferenceSettings
) -> PreferenceValues:
    """The paired loss of `settings`, with its share of `sft_weight`; pair i is the i-th of both."""
    loss = PREFERENCE_LOSSES[settings.loss]
    assert loss.paired
    good, bad = chosen.scores(loss), rejected.scores(loss)
    values = loss.values(good, bad, settings)
    if settings.sft_weight:
        values = values - settings.sft_weight * chosen.logps / chosen.tokens
    beta = settings.beta
    return PreferenceValues(values, beta * good.detach(), beta * bad.detach())


def unpaired_values(
    answers: Answers, desirable: Tensor, settings: PreferenceSettings, baseline: Tensor
) -> PreferenceValues:
    """The unpaired loss of `settings`; `desirable` `[answers]` is bool, `baseline` as in `_kto`."""
    loss = PREFERENCE_LOSSES[settings.loss]
    assert not loss.paired
    scores = answers.scores(loss)
    values = loss.values(scores, desirable, settings, baseline)
    if settings.sft_weight:
        likely = answers.logps / answers.tokens
        values = values - settings.sft_weight * torch.where(desirable, likely, 0.0)
    rewards = settings.beta * scores.detach()
    return PreferenceValues(values, rewards[desirable], rewards[~desirable])


def wins(margins: Tensor) -> Tensor:
    """1 for a positive margin, 1/2 for none, 0 for a negative one."""
    return (margins.detach().sign() + 1) / 2


def _sigmoid(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """DPO: Rafailov et al. 2023, equation 7."""
    return -logsigmoid(settings.beta * (chosen - rejected))


def _cdpo(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """Conservative DPO (Mitchell 2023): cross-entropy with smoothed labels."""
    wrong, logits = settings.label_smoothing, settings.beta * (chosen - rejected)
    return -(1 - wrong) * logsigmoid(logits) - wrong * logsigmoid(-logits)


def _robust(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024): DPO's loss on clean labels, estimated without bias."""
    wrong, logits = settings.label_smoothing, settings.beta * (chosen - rejected)
    return (wrong * logsigmoid(-logits) - (1 - wrong) * logsigmoid(logits)) / (1 - 2 * wrong)


def _hinge(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """SLiC's hinge (Zhao et al. 2023) on DPO's scores."""
    return torch.relu(1 - settings.beta * (chosen - rejected))


def _ipo(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """IPO (Azar et al. 2023, equation 17), on means over tokens, as its authors ran it."""
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def _simpo(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """SimPO (Meng et al. 2024, equation 6)."""
    return -logsigmoid(settings.beta * (chosen - rejected) - settings.simpo_gamma)


def _orpo(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """ORPO (Hong et al. 2024): the chosen answer's cross-entropy and the log odds ratio."""
    odds_ratio = chosen - rejected - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - settings.orpo_lambda * logsigmoid(odds_ratio)


def _log_complement(logps: Tensor) -> Tensor:
    """`log(1 - exp(logps))`, finite also where a probability has been rounded to 1."""
    certain = -torch.finfo(logps.dtype).eps
    return torch.log(-torch.expm1(logps.clamp(max=certain)))


def _apo_zero(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, equation 7): chosen up, rejected down."""
    return torch.sigmoid(-settings.beta * chosen) + torch.sigmoid(settings.beta * rejected)


def _apo_down(chosen: Tensor, rejected: Tensor, settings: PreferenceSettings) -> Tensor:
    """APO-down (the same, equation 8): both down, the rejected further."""
    beta = settings.beta
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def _kto(
    scores: Tensor, desirable: Tensor, settings: PreferenceSettings, baseline: Tensor
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, equation 8).

    `baseline` is the estimate of the policy's KL to the reference: the mean log-ratio of answers
    to prompts they do not belong to. It counts as 0 when negative, and gets no gradient.
    """
    gains = settings.beta * (scores - baseline.detach().clamp(min=0))
    return torch.where(
        desirable,
        settings.desirable_weight * torch.sigmoid(-gains),
        settings.undesirable_weight * torch.sigmoid(gains),
    )


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(_sigmoid),
    "cdpo": PreferenceLoss(_cdpo),
    "robust": PreferenceLoss(_robust),
    "hinge": PreferenceLoss(_hinge),
    "ipo": PreferenceLoss(_ipo, averaged=True),
    "simpo": PreferenceLoss(_simpo, reference=False, averaged=True),
    "orpo": PreferenceLoss(_orpo, reference=False, averaged=True),
    "apo_zero": PreferenceLoss(_apo_zero),
    "apo_down": PreferenceLoss(_apo_down),
    "kto": PreferenceLoss(_kto, paired=False),
}
