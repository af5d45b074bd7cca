"""Training on next tokens, which pretraining and supervised fine-tuning both are.

They differ in which tokens are targets: all of a text, or what the assistant says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fourbee.training.data_stage import DataRecipe, DataStage, batch_of
from fourbee.training.held_out import HeldOutTexts
from fourbee.training.learner import Learner
from fourbee.training.packing import Pack
from fourbee.training.samples import Loss
from fourbee.training.stage import Batch, PartLoss
from fourbee.training.trainer import Reporter


@dataclass(frozen=True, kw_only=True)
class TextRecipe(DataRecipe):
    """A run over texts or conversations."""


class TextStage(DataStage):
    """Cross-entropy of every target, over all targets of the update."""

    def __init__(
        self, recipe: TextRecipe, loss: Loss, learner: Learner, reporter: Reporter
    ) -> None:
        self.held_out = HeldOutTexts(recipe, learner, reporter.preparing)
        super().__init__(recipe, loss, learner, reporter)

    def batch(self, update: int) -> Batch:
        return batch_of(self.plan.packs(update))

    def loss(self, part: Pack) -> PartLoss:
        result = self.learner.next_token(part)
        correct = float(result.correct.sum())
        return PartLoss(result.loss, {"accuracy": (correct, part.num_targets)})

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        return self.held_out.measure()
