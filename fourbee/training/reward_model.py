"""Reward models: trained on pairs of answers (Bradley-Terry), then scoring answers for GRPO.

A reward model is the network with one more vector, `score.weight`; an answer's reward is its
product with the final hidden state of the token that ends the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.training.checks import at_least
from fourbee.training.data_stage import DataRecipe, DataStage, held_out_corpus
from fourbee.training.learner import Learner
from fourbee.training.packing import Pack, make_packs, pack_documents, whole_samples
from fourbee.training.reward_files import export_reward_model, load_reward_model
from fourbee.training.reward_losses import reward_accuracy, reward_values
from fourbee.training.stage import Batch, PartLoss, means
from fourbee.training.trainer import Reporter, Trainer

_TOKENS_PER_PACK = 8192


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(DataRecipe):
    """A run over preference pairs."""

    margin: float = 0.0  # by how much the chosen answer has to win
    centring: float = 0.0  # weight of (chosen + rejected)^2, which keeps rewards around 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "margin", "centring")
        self.refuse_enough("pairs have no exact answers")
        if self.init_from is None:
            raise UsageError("missing key 'init_from': a reward model starts from a trained one")


def rewards_of(learner: Learner, pack: Pack) -> Tensor:
    """The reward `[documents]` of each document of a pack, read where its answer ends.

    That is its last target: what a chat template writes behind an answer is no part of it, and is
    not there when an answer has just been sampled. A text without a target ends at its last token.
    """
    ends = np.cumsum(pack.lengths, dtype=np.int64)
    targets = np.where(pack.learned, np.arange(len(pack.ids)), -1)
    last = np.maximum.reduceat(targets, ends - np.array(pack.lengths))
    last = np.where(last < 0, ends - 1, last)
    return learner.model.score(learner.hidden(pack)[torch.from_numpy(last)])


class RewardStage(DataStage):
    """`-log sigmoid(chosen - rejected - margin)` over all pairs of the update."""

    def __init__(self, recipe: RewardRecipe, learner: Learner, reporter: Reporter) -> None:
        self.recipe = recipe
        super().__init__(recipe, "pair", learner, reporter)
        self.held_out = held_out_corpus(recipe, "pair", learner, reporter)

    def batch(self, update: int) -> Batch:
        pairs = len(self.plan.samples(update))
        return Batch(self.plan.packs(update), pairs, self.plan.tokens(update))

    def loss(self, part: Pack) -> PartLoss:
        rewards = rewards_of(self.learner, part)
        chosen, rejected = rewards[0::2], rewards[1::2]
        values = reward_values(chosen, rejected, self.recipe.margin, self.recipe.centring)
        count = len(chosen)
        sums = {
            "accuracy": (float(reward_accuracy(chosen, rejected).sum()), count),
            "margin": (float((chosen - rejected).detach().sum()), count),
            "mean_reward": (float(rewards.detach().sum()), 2 * count),
        }
        return PartLoss(values.sum(), sums)

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        pieces = whole_samples(self.held_out)
        if not pieces:
            return {}
        packs = make_packs(self.held_out, pieces, self.recipe.tokens_per_pack)
        return {"held_out": means([self.loss(pack) for pack in packs], len(pieces))}

    def export(self, folder: Path) -> None:
        recipe = self.recipe
        export_reward_model(folder, self.learner.model, recipe.tokenizer_folder, recipe.export_type)


class Scorer:
    """A finished reward model that scores answers; it learns nothing."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    @classmethod
    def load(cls, folder: Path, policy: Learner) -> Scorer:
        """The reward model of `folder`. UsageError for another tokenizer than the policy's."""
        learner = Learner(load_reward_model(folder), policy.ops, policy.tokenizer)
        policy.expect_same_tokenizer("reward_model", folder, learner.model)
        learner.model.to(policy.ops.device)
        return cls(learner)

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each text, prompt and answer with its end, in order."""
        documents = [(list(ids), [True] * len(ids)) for ids in texts]
        scores = [0.0] * len(texts)
        with torch.no_grad():
            for pack in pack_documents(documents, _TOKENS_PER_PACK):
                rewards = rewards_of(self._learner, pack).tolist()
                for index, reward in zip(pack.documents, rewards, strict=True):
                    scores[index] = reward
        return scores


def reward_model(recipe: RewardRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported folder."""
    return Trainer(
        "reward", recipe, lambda learner, told: RewardStage(recipe, learner, told), reporter,
        scored=True,
    ).train()  # fmt: skip
