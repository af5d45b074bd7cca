"""Distillation: a student learns a teacher's whole next-token distribution.

Off-policy on given texts (the teacher's answers, or any others), on-policy on what the student
itself writes, so that it learns from its own mistakes (GKD, Agarwal et al. 2024, arXiv 2306.13649;
Qwen3 technical report, section 4.5). Teacher and student share the tokenizer and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fourbee.foundation.errors import UsageError
from fourbee.model.config import Qwen3Config
from fourbee.training.checks import at_least, expect
from fourbee.training.data_stage import DataRecipe, batch_of, planned
from fourbee.training.distillation_losses import DistillationSettings, distillation_loss
from fourbee.training.export import export_model, initial_weights
from fourbee.training.held_out import HeldOutTexts
from fourbee.training.learner import Learner
from fourbee.training.network import TrainableQwen3
from fourbee.training.packing import Pack, pack_documents
from fourbee.training.rollouts import RolloutEngine
from fourbee.training.run_plan import RunPlan
from fourbee.training.sources import Source
from fourbee.training.stage import Batch, PartLoss
from fourbee.training.tasks import Tasks
from fourbee.training.trainer import Reporter, Trainer


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(DataRecipe):
    """A run of distillation. `updates` counts both kinds; `data` is needed for the off-policy."""

    teacher: Path  # checkpoint folder
    on_policy: float = 0.0  # share of the updates that learn from the student's own answers
    tasks: tuple[Source, ...] = ()  # prompts for those
    prompts_per_update: int = 32
    max_tokens: int = 64  # of an answer
    sampling_temperature: float = 1.0
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "prompts_per_update", "max_tokens")
        at_least(0, self, "sampling_temperature")
        expect(0 <= self.on_policy <= 1, "on_policy", self.on_policy, "a share from 0 to 1")
        if self.on_policy > 0 and not self.tasks:
            raise UsageError("tasks: expected files of prompts, as on_policy is above 0")
        if self.on_policy > 0 and self.updates is None:
            raise UsageError("updates: expected how many, as on_policy is above 0")
        if self.on_policy < 1 and not self.data:
            raise UsageError("data: expected files of texts, as on_policy is below 1")
        if self.on_policy == 0 and self.tasks:
            raise UsageError("tasks: expected none, as on_policy is 0 and nothing is answered")
        if self.on_policy == 1 and (self.data or self.mixture or self.curriculum):
            raise UsageError(
                "data, mixture, curriculum: expected none, as on_policy is 1 and no text is given"
            )


class DistillStage:
    """The divergence from the teacher over all targets of the update."""

    def __init__(self, recipe: DistillRecipe, learner: Learner, reporter: Reporter) -> None:
        self.recipe = recipe
        self.learner = learner
        self.teacher = _load_teacher(recipe.teacher, learner)
        self.held_out = HeldOutTexts(recipe, learner, reporter.preparing)
        self.plan: RunPlan | None = None
        if recipe.on_policy < 1:
            self.plan = planned(_on_texts(recipe), "assistant", learner, reporter)
        self.tasks: Tasks | None = None
        if recipe.on_policy > 0:
            self.tasks = Tasks.load(recipe.tasks, learner, recipe.max_tokens, reporter.preparing)
            self.engine = RolloutEngine(learner)

    @property
    def updates(self) -> int:
        if self.recipe.updates is not None:
            return self.recipe.updates
        assert self.plan is not None
        return len(self.plan)

    def may_save(self, done: int) -> bool:
        return True

    def batch(self, update: int) -> Batch:
        # Spread evenly: update n is on-policy where the share's multiples pass a whole number.
        share = self.recipe.on_policy
        before = _own_updates(update, share)
        if _own_updates(update + 1, share) > before:
            return self._own_answers(before)
        assert self.plan is not None
        return batch_of(self.plan.packs(update - before))

    def loss(self, part: Pack) -> PartLoss:
        with torch.no_grad():
            teacher = self.teacher.hidden(part)
        loss = distillation_loss(
            self.learner.hidden(part),
            self.learner.head,
            teacher,
            self.teacher.head,
            part,
            self.learner.ops,
            self.recipe.distillation,
        )
        return PartLoss(loss)

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        return self.held_out.measure()

    def export(self, folder: Path) -> None:
        export_model(folder, self.learner.model, self.recipe)

    def _own_answers(self, number: int) -> Batch:
        """What the student answers, now, to the next prompts."""
        recipe = self.recipe
        assert self.tasks is not None
        tasks = self.tasks.draw(number, recipe.prompts_per_update, recipe.seed)
        rollouts = self.engine.sample(
            tasks, number, recipe.seed, recipe.max_tokens, recipe.sampling_temperature
        )
        packs = pack_documents([one.document() for one in rollouts], recipe.tokens_per_pack)
        length = float(np.mean([len(one.token_ids) for one in rollouts]))
        return batch_of(packs, {"answer_tokens": length})


def distill(recipe: DistillRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(
        "distill", recipe, lambda learner, told: DistillStage(recipe, learner, told), reporter
    ).train()


def _own_updates(updates: int, share: float) -> int:
    """How many of the first updates are on-policy."""
    return int(np.floor(updates * share + 1e-9))


def _on_texts(recipe: DistillRecipe) -> DistillRecipe:
    """The recipe of the updates over given texts alone, so that a curriculum spans just those."""
    if recipe.updates is None:
        return recipe
    return replace(recipe, updates=recipe.updates - _own_updates(recipe.updates, recipe.on_policy))


def _load_teacher(folder: Path, student: Learner) -> Learner:
    """A frozen network of its own shape. UsageError for another tokenizer than the student's."""
    model = TrainableQwen3(Qwen3Config.load(folder))
    initial_weights(model, folder)
    student.expect_same_tokenizer("teacher", folder, model)
    model.requires_grad_(False).to(student.ops.device)
    return Learner(model, student.ops, student.tokenizer)
