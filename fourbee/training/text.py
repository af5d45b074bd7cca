"""Training on next tokens, which pretraining and supervised fine-tuning both are.

They differ in which tokens are targets: all of a text, or what the assistant says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fourbee.training.export import export_model
from fourbee.training.held_out import HeldOutTexts
from fourbee.training.learner import Learner
from fourbee.training.packing import Pack
from fourbee.training.recipe import TrainRecipe
from fourbee.training.run_plan import DataSettings, plan_run
from fourbee.training.samples import Loss
from fourbee.training.stage import Batch, PartLoss
from fourbee.training.tokenise import load_corpora
from fourbee.training.trainer import Reporter


@dataclass(frozen=True, kw_only=True)
class TextRecipe(DataSettings, TrainRecipe):
    """A run over texts or conversations."""

    def __post_init__(self) -> None:
        TrainRecipe.__post_init__(self)
        DataSettings.__post_init__(self)


class TextStage:
    """Cross-entropy of every target, over all targets of the update."""

    def __init__(
        self, recipe: TextRecipe, loss: Loss, learner: Learner, reporter: Reporter
    ) -> None:
        self.recipe = recipe
        self.learner = learner
        self.held_out = HeldOutTexts(recipe, learner)
        corpora = load_corpora(recipe, loss, reporter.preparing)
        positions = learner.model.config.max_position_embeddings
        self.plan = plan_run(corpora, recipe, recipe.seed, positions)

    @property
    def updates(self) -> int:
        return len(self.plan)

    def batch(self, update: int) -> Batch:
        packs = self.plan.packs(update)
        targets = sum(pack.num_targets for pack in packs)
        return Batch(packs, targets, self.plan.tokens(update))

    def loss(self, part: Pack) -> PartLoss:
        result = self.learner.next_token(part)
        correct = float(result.correct.sum())
        return PartLoss(result.loss, {"accuracy": (correct, part.num_targets)})

    def may_save(self, done: int) -> bool:
        return True

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        return self.held_out.measure()

    def export(self, folder: Path) -> None:
        export_model(folder, self.learner.model, self.recipe)
