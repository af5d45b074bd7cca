"""Rollouts: texts of the network that is being trained, written by the engine that serves.

The engine runs in this process, over the weights as they are at that moment; each call makes a new
one, so no key or value of older weights can be left. All prompts are answered in one batch, and an
answer depends on its prompt, its seed and the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.engine.engine import Engine
from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.kernels.backends import open_operations
from fourbee.model.packing import TABLES
from fourbee.model.weights import weights_tree
from fourbee.text.chat_format import ChatFormat
from fourbee.training.learner import Learner
from fourbee.training.recipe import Samples
from fourbee.training.samples import Document
from fourbee.training.tasks import Task, refuse_long

# Rows of a step beyond one for each answer: prompts are read beside them.
_PROMPT_ROWS = 2048
# Requests that run at once; more wait for a place, which changes no answer.
_RUNNING = 512
# A step may take as long as it takes: nobody waits for a token.
_STEP_MS = 3_600_000


@dataclass(frozen=True)
class Rollout:
    """An answer to a prompt, with the token that ended it if one did."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]  # by the engine, at temperature 1
    finished: bool  # False: cut at max_tokens

    def document(self) -> Document:
        """Prompt and answer, the answer's tokens as targets."""
        learned = [False] * len(self.prompt_ids) + [True] * len(self.token_ids)
        return self.ids, learned

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.token_ids]


class RolloutEngine:
    """Writes with a learner's weights, in float32, on its device."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        config = learner.model.config
        device = str(learner.ops.device)
        self._ops = open_operations("auto", device, "float32", "float32", head_dim=config.head_dim)
        self._ends = frozenset(learner.tokenizer.eos_token_ids)

    def write(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Rollout]:
        """An answer to each prompt, in order. TrainingError where one ends in an error."""
        longest = max(
            len(prompt) + (one.max_tokens or 0) for prompt, one in zip(prompts, params, strict=True)
        )
        engine = self._engine(len(prompts), longest)
        answers: list[list[tuple[int, float]]] = [[] for _ in prompts]
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            engine.add(Request(str(index), tuple(prompt), one))
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, TokenGenerated):
                    token = event.token
                    answers[int(event.request_id)].append((token.token_id, token.logprob))
                    # The engine knows no end tokens here, as it does not report them.
                    if token.token_id in self._ends:
                        engine.abort(event.request_id)
                elif isinstance(event, Finished) and event.error is not None:
                    raise TrainingError(f"rollout: {event.error}")
        return [
            _rollout(prompt, answer, self._ends)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def sample(
        self, tasks: Sequence[Task], number: int, seed: int, max_tokens: int, temperature: float
    ) -> list[Rollout]:
        """A sampled answer to each task; `number` of the rollout, so that each has its own seed."""
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_tokens,
                seed=_rollout_seed(seed, number, index),
            )
            for index in range(len(tasks))
        ]
        return self.write([task.prompt_ids for task in tasks], params)

    def text(self, rollout: Rollout) -> str:
        """The answer without the token that ended it."""
        ids = rollout.token_ids[: len(rollout.token_ids) - rollout.finished]
        return self._learner.tokenizer.decode(ids)

    def _engine(self, count: int, longest: int) -> Engine:
        model, ops = self._learner.model, self._ops
        tensors = {
            name: ops.from_numpy(tensor.detach().float().cpu().numpy(), table=name in TABLES)
            for name, tensor in model.merged_tensors().items()
        }
        running = min(count, _RUNNING)
        settings = EngineSettings(
            max_running=running,
            max_waiting=count,
            max_step_tokens=running + _PROMPT_ROWS,
            max_step_ms=_STEP_MS,
            kv_pages=running * (-(-longest // 64) + 1),
        )
        return Engine(weights_tree(model.config, tensors), ops, (), settings)


def _rollout_seed(seed: int, rollout: int, number: int) -> int:
    """A seed of its own for every answer of a run."""
    return int(np.random.SeedSequence((seed, rollout, number)).generate_state(1, np.uint64)[0])


def sample_texts(learner: Learner, samples: Samples) -> list[dict[str, Any]]:
    """What the network answers, greedily, to each prompt of a recipe."""
    engine = RolloutEngine(learner)
    params = SamplingParams(temperature=0, max_tokens=samples.max_tokens)
    prompts = encode_prompts(learner, samples)
    rollouts = engine.write(prompts, [params] * len(prompts))
    return [
        {"prompt": prompt, "text": engine.text(rollout), "finished": rollout.finished}
        for prompt, rollout in zip(samples.prompts, rollouts, strict=True)
    ]


def encode_prompts(learner: Learner, samples: Samples) -> list[list[int]]:
    """The prompts of a recipe as tokens. UsageError for one that no answer fits to."""
    prompts = [_encode_prompt(learner, prompt, samples.chat) for prompt in samples.prompts]
    for index, ids in enumerate(prompts):
        try:
            refuse_long(ids, samples.max_tokens, learner)
        except TrainingError as error:
            raise UsageError(f"samples.prompts[{index}]: {error}") from None
    return prompts


def _encode_prompt(learner: Learner, prompt: str, chat: bool) -> list[int]:
    """A user's words as the chat template asks for an answer to them, or a text to go on with."""
    if not chat:
        return learner.tokenizer.encode(prompt, control_tokens=True)
    return ChatFormat(learner.tokenizer).encode([{"role": "user", "content": prompt}])


def _rollout(
    prompt: Sequence[int], answer: list[tuple[int, float]], ends: frozenset[int]
) -> Rollout:
    ids = tuple(token_id for token_id, _ in answer)
    logps = tuple(logp for _, logp in answer)
    return Rollout(tuple(prompt), ids, logps, bool(ids) and ids[-1] in ends)
