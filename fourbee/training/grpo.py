"""GRPO: several answers to each prompt, and more of those that are rewarded above their group.

The engine that serves writes the answers in this process with the weights as they are (Shao et al.
2024, arXiv 2402.03300). What was sampled is scored by named rewards, by a reward model, or both.
The log-probabilities that ratios are taken to are the trainer's own; how far the engine's are from
them is logged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourbee.engine.sampling import SamplingParams
from fourbee.foundation.errors import UsageError
from fourbee.training.checks import at_least, expect
from fourbee.training.export import export_model
from fourbee.training.learner import Learner
from fourbee.training.losses import targets_by_document
from fourbee.training.packing import Pack, pack_documents
from fourbee.training.policy_losses import (
    PolicySettings,
    PolicyTokens,
    group_advantages,
    policy_loss,
    sequence_weights,
)
from fourbee.training.recipe import TrainRecipe
from fourbee.training.reward_model import Scorer
from fourbee.training.rewards import Rewards, RewardTerm
from fourbee.training.rollouts import Rollout, RolloutEngine
from fourbee.training.sources import Source
from fourbee.training.stage import Batch, PartLoss
from fourbee.training.tasks import Task, Tasks
from fourbee.training.trainer import Reporter, Trainer


@dataclass(frozen=True, kw_only=True)
class GrpoRecipe(TrainRecipe):
    """A run of GRPO. An update learns from its share of a rollout's answers."""

    data: tuple[Source, ...]  # tasks: {"prompt": ..., "answer": ...}
    rewards: tuple[RewardTerm, ...] = ()  # what is learned from
    reward_model: Path | None = None  # its score is added to the rewards
    watched: tuple[RewardTerm, ...] = ()  # logged beside the rewards, never learned from
    updates: int = 100
    prompts_per_rollout: int = 16
    answers_per_prompt: int = 8
    updates_per_rollout: int = 1
    max_tokens: int = 64  # of an answer
    temperature: float = 1.0
    tokens_per_pack: int = 8192
    keep_even: bool = True  # false: groups rewarded all alike are left out (DAPO: dynamic sampling)
    keep_cut: bool = True  # false: answers cut at max_tokens are not learned from (DAPO)
    watch_kl: bool = False  # log the KL to the first weights also where policy.kl_weight is 0
    policy: PolicySettings = field(default_factory=PolicySettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(
            1, self, "updates", "prompts_per_rollout", "answers_per_prompt", "updates_per_rollout",
            "max_tokens", "tokens_per_pack",
        )  # fmt: skip
        expect(
            0 < self.temperature < math.inf, "temperature", self.temperature,
            "above 0, as answers have to differ",
        )  # fmt: skip
        if not self.data:
            raise UsageError("data: expected at least one file of tasks")
        if not self.rewards and self.reward_model is None:
            raise UsageError("rewards: expected at least one [[rewards]], or a reward_model")
        Rewards(self.rewards, self.watched)  # refuses what is given twice
        if "exact" not in {term.name for term in (*self.rewards, *self.watched)}:
            self.refuse_enough("neither rewards nor watched has 'exact'")
        if self.policy.gap_cap and self.temperature != 1:
            raise UsageError(
                f"policy.gap_cap = {self.policy.gap_cap}: expected 0 with temperature = "
                f"{self.temperature}, as what the engine reports is of temperature 1"
            )
        if self.answers_per_prompt < 2:
            raise UsageError("answers_per_prompt = 1: expected 2 or more, to be compared")
        if self.prompts_per_rollout % self.updates_per_rollout:
            raise UsageError(
                f"updates_per_rollout = {self.updates_per_rollout}: expected a divisor of "
                f"prompts_per_rollout = {self.prompts_per_rollout}"
            )


@dataclass(frozen=True)
class PolicyPart:
    """Answers side by side, with what is known of each of their tokens, `[targets]`."""

    pack: Pack
    advantages: Tensor
    weights: Tensor
    engine_logps: Tensor
    old_logps: Tensor | None  # None: those of this very update, its rollout's only one
    reference_logps: Tensor | None


@dataclass(frozen=True)
class _Answers:
    """A rollout, prompt by prompt."""

    rollouts: list[list[Rollout]]
    advantages: Tensor  # [prompts, answers]
    even: list[bool]  # [prompts]: all answers are rewarded alike, which teaches nothing
    facts: dict[str, float]


class GrpoStage:
    """Rollouts, their rewards and the clipped surrogate."""

    def __init__(self, recipe: GrpoRecipe, learner: Learner, reporter: Reporter) -> None:
        self.recipe = recipe
        self.learner = learner
        self.engine = RolloutEngine(learner)
        self.rewards = Rewards(recipe.rewards, recipe.watched)
        self.tasks = self._load(recipe.data, reporter)
        held_out = recipe.validation
        self.held_out = (
            self._load((held_out.source,), reporter, held_out.samples) if held_out else None
        )
        self.scorer = Scorer.load(recipe.reward_model, learner) if recipe.reward_model else None
        needs_reference = recipe.policy.kl_weight > 0 or recipe.watch_kl
        self.reference = learner.frozen() if needs_reference else None
        self._parts: list[Batch] = []

    @property
    def updates(self) -> int:
        return self.recipe.updates

    def may_save(self, done: int) -> bool:
        return done % self.recipe.updates_per_rollout == 0

    def batch(self, update: int) -> Batch:
        rollout, share = divmod(update, self.recipe.updates_per_rollout)
        if share == 0:
            self._parts = self._roll_out(rollout)
        return self._parts[share]

    def loss(self, part: PolicyPart) -> PartLoss:
        logps = self.learner.logps(part.pack, self.recipe.temperature)
        old = logps.detach() if part.old_logps is None else part.old_logps
        tokens = PolicyTokens(
            logps=logps,
            old_logps=old,
            advantages=part.advantages,
            weights=part.weights,
            sequences=targets_by_document(part.pack).tolist(),
            reference_logps=part.reference_logps,
            engine_logps=part.engine_logps,
        )
        result = policy_loss(tokens, self.recipe.policy)
        count = len(logps)
        sums = {
            "clipped": (float(result.clipped), count),
            "approximate_kl": (float(result.approximate_kl), count),
            "ratio": (float(result.ratio_sum), count),
        }
        if part.reference_logps is not None:
            sums["reference_kl"] = (float(result.reference_kl), count)
        if self.recipe.temperature == 1:  # the engine's are of temperature 1
            gap = (old - part.engine_logps).abs()
            sums["engine_gap"] = (float(gap.sum()), count)
        return PartLoss(result.loss, sums)

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        """Means of all rewards on greedy answers to held-out tasks."""
        if self.held_out is None:
            return {}
        tasks = self.held_out.tasks
        params = SamplingParams(temperature=0, max_tokens=self.recipe.max_tokens)
        rollouts = self.engine.write([task.prompt_ids for task in tasks], [params] * len(tasks))
        texts = [self.engine.text(one) for one in rollouts]
        measured = self.rewards.score(texts, tasks).means
        if self.scorer is not None:
            scores = self.scorer.scores([one.ids for one in rollouts])
            measured["reward_model"] = float(np.mean(scores))
        return {"held_out": measured}

    def export(self, folder: Path) -> None:
        export_model(folder, self.learner.model, self.recipe)

    def _load(
        self, sources: Sequence[Source], reporter: Reporter, most: int | None = None
    ) -> Tasks:
        """Tasks that every reward can score."""
        return Tasks.load(
            sources, self.learner, self.recipe.max_tokens, reporter.preparing, most,
            lambda task: self.rewards.score([""], [task]),
        )  # fmt: skip

    def _roll_out(self, rollout: int) -> list[Batch]:
        """The batches of a rollout's updates."""
        recipe = self.recipe
        tasks = self.tasks.draw(rollout, recipe.prompts_per_rollout, recipe.seed)
        answers = self._answer(tasks, rollout)
        share = recipe.prompts_per_rollout // recipe.updates_per_rollout
        return [
            self._batch(answers, range(start, start + share))
            for start in range(0, recipe.prompts_per_rollout, share)
        ]

    def _answer(self, tasks: Sequence[Task], rollout: int) -> _Answers:
        recipe, count = self.recipe, self.recipe.answers_per_prompt
        repeated = [task for task in tasks for _ in range(count)]
        flat = self.engine.sample(
            repeated, rollout, recipe.seed, recipe.max_tokens, recipe.temperature
        )
        texts = [self.engine.text(one) for one in flat]
        scored = self.rewards.score(texts, repeated)
        rewards = torch.tensor(scored.totals)
        facts = {
            **scored.means,
            "answer_tokens": float(np.mean([len(one.token_ids) for one in flat])),
            "cut": float(np.mean([not one.finished for one in flat])),
        }
        if self.scorer is not None:
            scores = torch.tensor(self.scorer.scores([one.ids for one in flat]))
            facts["reward_model"] = float(scores.mean())
            rewards = rewards + scores
        groups = rewards.view(len(tasks), count)
        even = groups.amax(1) == groups.amin(1)
        facts |= {"reward": float(rewards.mean()), "even_groups": float(even.float().mean())}
        advantages = group_advantages(groups, recipe.policy.scale)
        rows = [flat[start : start + count] for start in range(0, len(flat), count)]
        return _Answers(rows, advantages, even.tolist(), facts)

    def _batch(self, answers: _Answers, prompts: range) -> Batch:
        """One update over the answers to some of a rollout's prompts."""
        chosen = [
            (rollout, float(answers.advantages[prompt, number]))
            for prompt in prompts
            if self.recipe.keep_even or not answers.even[prompt]
            for number, rollout in enumerate(answers.rollouts[prompt])
            if rollout.finished or self.recipe.keep_cut
        ]
        documents = [rollout.document() for rollout, _ in chosen]
        lengths = torch.tensor([float(len(rollout.token_ids)) for rollout, _ in chosen])
        weights = sequence_weights(lengths, self.recipe.policy) if chosen else lengths
        packs = pack_documents(documents, self.recipe.tokens_per_pack)
        parts = [self._part(pack, chosen, weights) for pack in packs]
        tokens = sum(len(ids) for ids, _ in documents)
        return Batch(parts, 1.0, tokens, answers.facts)

    def _part(
        self, pack: Pack, chosen: Sequence[tuple[Rollout, float]], weights: Tensor
    ) -> PolicyPart:
        inside = [chosen[index] for index in pack.documents]
        counts = torch.tensor([len(rollout.token_ids) for rollout, _ in inside])
        device = self.learner.ops.device
        advantages = torch.tensor([advantage for _, advantage in inside])
        engine = torch.tensor([logp for rollout, _ in inside for logp in rollout.logps])
        old = None
        if self.recipe.updates_per_rollout > 1:
            with torch.no_grad():
                old = self.learner.logps(pack, self.recipe.temperature)
        reference = None
        if self.reference is not None:
            reference = self.reference.logps(pack, self.recipe.temperature)
        return PolicyPart(
            pack=pack,
            advantages=advantages.repeat_interleave(counts).to(device),
            weights=weights[list(pack.documents)].repeat_interleave(counts).to(device),
            engine_logps=engine.to(device),
            old_logps=old,
            reference_logps=reference,
        )


def grpo(recipe: GrpoRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(
        "grpo", recipe, lambda learner, told: GrpoStage(recipe, learner, told), reporter
    ).train()
