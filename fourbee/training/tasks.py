"""Tasks: prompts whose answers can be scored, and the order in which rollouts take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.foundation.errors import FourbeeError, TrainingError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.samples import encode_prompt
from fourbee.training.sources import Source, read_samples


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
        cls, sources: Sequence[Source], tokenizer: Tokenizer, most: int | None = None
    ) -> Tasks:
        """The first `most` samples of the sources. TrainingError naming file and line."""
        chat = ChatFormat(tokenizer)
        tasks: list[Task] = []
        for source in sources:
            for where, sample in read_samples(source):
                if most is not None and len(tasks) == most:
                    break
                prompt = _encode(sample, tokenizer, chat, where)
                tasks.append(Task(tuple(prompt), sample))
        if not tasks:
            raise TrainingError("data: no tasks in these files")
        return cls(tuple(tasks))

    def draw(self, rollout: int, count: int, seed: int) -> list[Task]:
        """The tasks of a rollout: each epoch takes every one once, in an order of its own."""
        size, first, stop = len(self.tasks), rollout * count, (rollout + 1) * count
        orders = {
            epoch: np.random.default_rng((seed, epoch)).permutation(size)
            for epoch in range(first // size, (stop - 1) // size + 1)
        }
        return [self.tasks[orders[place // size][place % size]] for place in range(first, stop)]


def _encode(
    sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat, where: str
) -> list[int]:
    try:
        return encode_prompt(sample, tokenizer, chat)
    except FourbeeError as error:
        raise TrainingError(f"{where}: {error}") from None
