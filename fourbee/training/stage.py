"""What a stage of training is to the one loop in `trainer.py`: batches, their loss, and checks.

A stage knows its data and its loss; it knows no optimizer, checkpoint or log. Its batch for update
n depends on the recipe, n and the weights alone: that is what makes a run resume to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

# Sum and count of a quantity, so that parts of an update add up to its mean exactly.
Sums = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Batch:
    """What one update learns from."""

    parts: Sequence[Any]  # each is in memory, with its activations, on its own
    count: float  # the update's loss is the parts' summed loss over this
    tokens: int
    facts: Mapping[str, float] = field(default_factory=dict)  # known before any gradient; logged


@dataclass(frozen=True)
class PartLoss:
    """A part's summed loss, differentiable, and what is logged of it."""

    loss: Tensor
    sums: Sums = field(default_factory=dict)


class Stage(Protocol):
    """One kind of training."""

    @property
    def updates(self) -> int:
        """How many updates the whole run has."""
        ...

    def batch(self, update: int) -> Batch:
        """What update number `update` (from 0) learns from."""
        ...

    def loss(self, part: Any) -> PartLoss:
        """The summed loss of one part of a batch."""
        ...

    def may_save(self, done: int) -> bool:
        """Whether a run can be taken up after `done` updates: not between two that share a rollout.

        The trainer waits for the next such moment.
        """
        ...

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        """Measures on what is held out, by name; empty where nothing is."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the trained model."""
        ...


def means(parts: Sequence[PartLoss], count: float) -> dict[str, float]:
    """The loss over `count` and the other measures of all parts together."""
    loss = sum(float(part.loss) for part in parts) / count
    return {"loss": loss, **merged([part.sums for part in parts])}


def merged(sums: Sequence[Sums]) -> dict[str, float]:
    """The means of all parts together."""
    totals: dict[str, tuple[float, float]] = {}
    for one in sums:
        for name, (value, count) in one.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + value, before[1] + count
    return {name: value / count for name, (value, count) in totals.items() if count}
