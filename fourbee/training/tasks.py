"""Tasks: prompts whose answers can be scored, and the order in which rollouts take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.foundation.errors import TrainingError
from fourbee.text.chat_format import ChatFormat
from fourbee.training.learner import Learner
from fourbee.training.samples import encode
from fourbee.training.sources import Sample, Source, Told, good_samples


@dataclass(frozen=True)
class Task:
    """A prompt as tokens, and the sample that it is of (its `answer` among other things)."""

    prompt_ids: tuple[int, ...]
    sample: Mapping[str, Any]


@dataclass(frozen=True)
class Tasks:
    """All tasks of a run, in the order of their files."""

    tasks: tuple[Task, ...]

    @classmethod
    def load(
        cls,
        sources: Sequence[Source],
        learner: Learner,
        max_tokens: int,
        told: Told,
        most: int | None = None,
        check: Callable[[Task], object] = lambda _: None,
    ) -> Tasks:
        """The first `most` samples of each source, as `good_samples`; `check` refuses others.

        Bad is also one whose answer of `max_tokens` has no place in the network's positions.
        """
        tokenizer, chat = learner.tokenizer, ChatFormat(learner.tokenizer)
        if not any(token_id < tokenizer.vocab_size for token_id in tokenizer.eos_token_ids):
            raise TrainingError(
                f"tokenizer: no token ends an answer (eos_token_id = {tokenizer.eos_token_ids}); "
                "expected eos_token in tokenizer_config.json, or its id in generation_config.json"
            )

        def make(sample: Sample) -> Task:
            ((ids, _),) = encode(sample, "prompt", tokenizer, chat).documents
            refuse_long(ids, max_tokens, learner)
            task = Task(tuple(ids), sample)
            check(task)
            return task

        found = [good_samples(source, make, told, most) for source in sources]
        return cls(tuple(task for tasks in found for _, task in tasks))

    def draw(self, rollout: int, count: int, seed: int) -> list[Task]:
        """The tasks of a rollout: each epoch takes every one once, in an order of its own."""
        size, first, stop = len(self.tasks), rollout * count, (rollout + 1) * count
        orders = {
            epoch: np.random.default_rng((seed, epoch)).permutation(size)
            for epoch in range(first // size, (stop - 1) // size + 1)
        }
        return [self.tasks[orders[place // size][place % size]] for place in range(first, stop)]


def refuse_long(ids: Sequence[int], max_tokens: int, learner: Learner) -> None:
    """TrainingError for a prompt that is empty, or to which no whole answer fits."""
    positions = learner.model.config.max_position_embeddings
    if not 0 < len(ids) <= positions - max_tokens:
        raise TrainingError(
            f"prompt of {len(ids)} tokens: expected at least 1, and with max_tokens = {max_tokens} "
            f"at most the model's {positions} positions"
        )
