"""What the stages over given samples share: their data, held-out ones too, and the plan of a run.

Not here: their losses, and GRPO, whose data are tasks that it writes answers to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourbee.text.chat_format import ChatFormat
from fourbee.training.corpus import Corpus
from fourbee.training.export import export_model
from fourbee.training.learner import Learner
from fourbee.training.packing import Pack
from fourbee.training.recipe import TrainRecipe
from fourbee.training.run_plan import DataSettings, RunPlan, fitting, plan_run
from fourbee.training.samples import Loss, encode
from fourbee.training.sources import good_samples
from fourbee.training.stage import Batch
from fourbee.training.tokenise import corpus_of, load_corpora
from fourbee.training.trainer import Reporter


@dataclass(frozen=True, kw_only=True)
class DataRecipe(DataSettings, TrainRecipe):
    """A run over samples."""

    def __post_init__(self) -> None:
        TrainRecipe.__post_init__(self)
        DataSettings.__post_init__(self)


class DataStage:
    """A stage whose updates are those of a plan."""

    def __init__(
        self, recipe: DataRecipe, loss: Loss, learner: Learner, reporter: Reporter
    ) -> None:
        self.learner = learner
        self.plan = planned(recipe, loss, learner, reporter)
        self._recipe = recipe

    @property
    def updates(self) -> int:
        return len(self.plan)

    def may_save(self, done: int) -> bool:
        return True

    def export(self, folder: Path) -> None:
        export_model(folder, self.learner.model, self._recipe)


def planned(recipe: DataRecipe, loss: Loss, learner: Learner, reporter: Reporter) -> RunPlan:
    """The plan of a recipe's data, tokenised where it is not yet."""
    positions = learner.model.config.max_position_embeddings
    corpora = load_corpora(recipe, loss, reporter.preparing)
    corpora = fitting(corpora, recipe, positions, reporter.preparing)
    return plan_run(corpora, recipe, recipe.seed, positions)


def held_out_corpus(
    recipe: DataRecipe, loss: Loss, learner: Learner, reporter: Reporter
) -> tuple[Corpus, ...]:
    """The first samples of the recipe's held-out file of preferences; nothing without one."""
    settings, tokenizer = recipe.validation, learner.tokenizer
    if settings is None:
        return ()
    chat = ChatFormat(tokenizer)
    found = good_samples(
        settings.source, lambda one: encode(one, loss, tokenizer, chat), reporter.preparing,
        settings.samples,
    )  # fmt: skip
    corpus = corpus_of(settings.source, loss, [(number, 0.0, one) for number, one in found])
    positions = learner.model.config.max_position_embeddings
    return fitting((corpus,), recipe, positions, reporter.preparing)


def batch_of(packs: Sequence[Pack], facts: Mapping[str, float] | None = None) -> Batch:
    """An update whose loss is a mean over all targets."""
    targets = sum(pack.num_targets for pack in packs)
    return Batch(packs, targets, sum(len(pack.ids) for pack in packs), facts or {})
