"""Learner: a network being trained with the operations that run it, pack after pack.

What stages share: hidden states, log-probabilities, and a reference that stays as the network was
before its first update. It makes no update itself.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import DTYPES
from fourbee.model.config import Qwen3Config
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.attention import TrainingAttention
from fourbee.training.export import initial_adapter, initial_weights, with_positions
from fourbee.training.losses import NextToken, next_token_loss, token_logps
from fourbee.training.network import TrainableQwen3, recomputed_block
from fourbee.training.operations import TrainingOperations
from fourbee.training.packing import Pack
from fourbee.training.recipe import TrainRecipe


class Learner:
    """A network, its operations and its tokenizer."""

    def __init__(
        self, model: TrainableQwen3, ops: TrainingOperations, tokenizer: Tokenizer
    ) -> None:
        self.model = model
        self.ops = ops
        self.tokenizer = tokenizer

    @classmethod
    def from_recipe(cls, recipe: TrainRecipe, scored: bool = False) -> Learner:
        """The network of a recipe before its first update; `scored`: a reward model."""
        ops = TrainingOperations(recipe.device, DTYPES[recipe.precision])
        tokenizer = Tokenizer.load(recipe.tokenizer_folder)
        model = _network(recipe, scored, tokenizer.vocab_size)
        model.run_block = recomputed_block if recipe.checkpointing else None
        learner = cls(model.to(recipe.device), ops, tokenizer)
        if recipe.init_from is not None:
            learner.expect_same_tokenizer("init_from", recipe.init_from, model)
        return learner

    def expect_same_tokenizer(self, key: str, folder: Path, model: TrainableQwen3) -> None:
        """UsageError where the model of `folder` was not trained on this tokenizer's ids.

        A part of its vocabulary, or one with more tokens, is the same tokenizer.
        """
        rows, wanted = model.config.vocab_size, self.model.config.vocab_size
        if rows != wanted or rows < self.tokenizer.vocab_size:
            raise UsageError(
                f"{key} = {folder}: {rows:,} vocabulary entries, expected "
                f"{max(wanted, self.tokenizer.vocab_size):,}, as of the run's own tokenizer"
            )
        if not (folder / "tokenizer.json").is_file():
            return
        ours = self.tokenizer.tokens()
        for token_id, token in sorted(Tokenizer.load(folder).tokens().items()):
            if ours.get(token_id, token) != token:
                raise UsageError(
                    f"{key} = {folder}: token {token_id} is {token!r} there, and "
                    f"{ours[token_id]!r} in the run's tokenizer; expected the same tokenizer"
                )

    @property
    def head(self) -> Linear:
        """The map from hidden states to logits."""
        return self.model.head()

    def hidden(self, pack: Pack) -> Tensor:
        """Final hidden states `[T, D]` of a pack, each document on its own."""
        device = self.ops.device
        ids = torch.from_numpy(pack.ids).to(device)
        positions = torch.from_numpy(pack.positions).to(device)
        hidden: Tensor = self.model(ids, positions, TrainingAttention(pack.lengths), self.ops)
        return hidden

    def next_token(self, pack: Pack) -> NextToken:
        """Summed cross-entropy of the pack's targets."""
        return next_token_loss(self.hidden(pack), self.head, pack, self.ops)

    def logps(self, pack: Pack, temperature: float = 1.0) -> Tensor:
        """Log-probability of each target of the pack, in order."""
        return token_logps(self.hidden(pack), self.head, pack, self.ops, temperature)

    def frozen(self) -> Reference:
        """The network as it is now; it stays so while this one learns."""
        return Reference(self)


class Reference:
    """A network as it was at one moment: with a copy of its adapters, or else of its weights."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        # Few or many updates old, an adapter is small; a new one adds nothing yet (B is zero).
        self._adapter = {
            name: one.detach().clone() for name, one in learner.model.adapter_tensors().items()
        }
        if not learner.model.adapted:
            model = copy.deepcopy(learner.model).requires_grad_(False)
            self._learner = Learner(model, learner.ops, learner.tokenizer)

    def logps(self, pack: Pack, temperature: float = 1.0) -> Tensor:
        """As the learner's, without gradients."""
        with torch.no_grad(), self._learner.model.adapted_by(self._adapter):
            return self._learner.logps(pack, temperature)


def _network(recipe: TrainRecipe, scored: bool, vocabulary: int) -> TrainableQwen3:
    if recipe.init_from is None:
        return TrainableQwen3(recipe.model.config(_padded(vocabulary)), recipe.seed)
    stored = Qwen3Config.load(recipe.init_from)
    # What is frozen stays in its own type, if that is what it is multiplied in.
    frozen = DTYPES[recipe.precision if stored.torch_dtype == recipe.precision else "float32"]
    config = with_positions(stored, recipe.positions)
    model = TrainableQwen3(config, recipe.seed, recipe.lora, scored, frozen)
    initial_weights(model, recipe.init_from)
    if recipe.init_adapter_from is not None:
        initial_adapter(model, recipe.init_adapter_from)
    return model


def _padded(size: int) -> int:
    """Vocabulary rows: the next multiple of 128, so that every width has one geometry."""
    return -(-size // 128) * 128
