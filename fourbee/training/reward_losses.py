"""The loss of a reward model on pairs of answers, as a plain function of its rewards."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from fourbee.training.checks import expect
from fourbee.training.preference_losses import wins


def reward_values(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centring: float = 0.0
) -> Tensor:
    """Bradley-Terry: `-log sigmoid(chosen - rejected - margin)` of each pair, `[pairs]`.

    `margin` is by how much the chosen answer has to win (Touvron et al. 2023, section 3.2.2).
    `centring` times `(chosen + rejected)^2` is added, which settles the constant that the loss
    leaves open (Eisenstein et al. 2023). Raises UsageError for a centring below 0.
    """
    expect(0 <= centring < math.inf, "centring", centring, "0 or more")
    values = -logsigmoid(chosen - rejected - margin)
    return values + centring * (chosen + rejected) ** 2 if centring else values


def reward_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen answer has the higher reward, 1/2 at a tie, else 0; `[pairs]`."""
    return wins(chosen - rejected)
