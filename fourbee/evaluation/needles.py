"""Needles in hay for the retrieval checkpoint: texts of any length, questions, and exact answers.

A haystack is `<s>`, hay, and needles at given depths among others that nobody asks for; every key
and every value is in it once. The answer is one token after the other of what the text says, so
that a question counts as exact or not: there is nothing to judge. The checkpoint and why it cannot
miss are `retrieval.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.evaluation.retrieval import (
    ASK,
    END,
    HAY,
    START,
    TELL,
    is_key,
    is_value,
    retrieval_config,
    retrieval_tensors,
    retrieval_tokenizer,
    vocabulary,
)
from fourbee.foundation.errors import UsageError
from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.kernels.backends import open_operations
from fourbee.kernels.operations import Operations
from fourbee.model.packing import TABLES
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.weights import weights_tree

VALUES = 6  # tokens of an answer
DISTRACTORS = 16


@dataclass(frozen=True)
class Question:
    """What follows the haystack, and the tokens that answer it before the full stop."""

    depth: float
    token_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Haystack:
    """A text and a question for each depth."""

    token_ids: tuple[int, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: Question) -> tuple[int, ...]:
        """The text with one question after it."""
        return self.token_ids + question.token_ids


@dataclass(frozen=True)
class Found:
    """What became of a question. `exact`: each token of the answer, and then the end."""

    length: int
    depth: float
    exact: bool
    text: str
    seconds: float  # from the question to the end of the answer


def haystack(
    length: int,
    depths: Sequence[float],
    seed: int = 0,
    distractors: int = DISTRACTORS,
    values: int = VALUES,
) -> Haystack:
    """A text of which every question, with its answer and the full stop, makes `length` tokens.

    A needle at depth 0 follows `<s>`, one at depth 1 is followed by the question. UsageError where
    needles do not fit beside each other.
    """
    rng = np.random.default_rng(seed)
    ids = {token: number for number, token in enumerate(vocabulary())}
    count, size = len(depths) + distractors, values + 3
    room = length - 2 - (values + 1)  # without the question, the answer and its end
    hay = rng.choice([ids[word] for word in HAY], max(room, 0))
    keys = rng.choice([ids[token] for token in ids if is_key(token)], count, replace=False)
    told = rng.choice([ids[token] for token in ids if is_value(token)], (count, values), False)
    needles = np.concatenate(
        (np.full((count, 1), ids[TELL]), keys[:, None], told, np.full((count, 1), ids[END])), axis=1
    )
    starts = _starts(rng, room - 1, size, depths, distractors)
    for start, needle in zip(starts, needles, strict=True):
        hay[1 + start : 1 + start + size] = needle
    hay[0] = ids[START]
    questions = (
        Question(depth, (ids[ASK], int(key)), tuple(answer.tolist()))
        for depth, key, answer in zip(depths, keys, told, strict=False)
    )
    return Haystack(tuple(hay.tolist()), tuple(questions))


def needle_prompt(
    length: int,
    depth: float,
    seed: int = 0,
    distractors: int = DISTRACTORS,
    values: int = VALUES,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt with one needle that is asked for, and its answer; `length` as in `haystack`."""
    made = haystack(length, [depth], seed, distractors, values)
    [question] = made.questions
    return made.prompt(question), question.answer_ids


def _starts(
    rng: np.random.Generator, room: int, size: int, depths: Sequence[float], distractors: int
) -> list[int]:
    """Where needles begin that do not overlap: first those of the depths, then others anywhere."""
    free = np.ones(max(room, 0), dtype=bool)
    starts: list[int] = []
    for depth in (*depths, *[None] * distractors):
        if depth is None:
            runs = np.convolve(free, np.ones(size), "valid") if len(free) >= size else free[:0]
            fitting = np.flatnonzero(runs == size)
            start = int(rng.choice(fitting)) if len(fitting) else room
        else:
            start = round(depth * (room - size))
        if not free[start : start + size].sum() == size:
            raise UsageError(
                f"{len(depths) + distractors} needles of {size} tokens at these depths: no room "
                f"among {room} tokens of hay; expected a longer text or fewer needles",
                "length",
            )
        free[start : start + size] = False
        starts.append(start)
    return starts


def retrieval_weights(ops: Operations) -> Qwen3Weights:
    """The retrieval checkpoint as these operations keep it, without files."""
    config = retrieval_config()
    tensors = retrieval_tensors(config).items()
    return weights_tree(
        config, {name: ops.from_numpy(tensor, name in TABLES) for name, tensor in tensors}
    )


def retrieval_llm(
    length: int, quantize: str = "none", kv_type: str = "auto", backend: str = "auto"
) -> LLM:
    """The same, ready to answer, in an engine that keeps a text of `length` between questions.

    Other words as in `LLM.load`.
    """
    ops = open_operations(
        backend, "cpu", checkpoint_dtype="bfloat16", quantize=quantize, kv_type=kv_type
    )
    settings = EngineSettings(kv_pages=length // PAGE_KEYS + 16)
    greedy = SamplingDefaults(temperature=0.0)
    return LLM(retrieval_weights(ops), ops, retrieval_tokenizer(), greedy, settings)


def measure(
    llm: LLM,
    lengths: Sequence[int],
    depths: Sequence[float],
    seed: int = 0,
    distractors: int = DISTRACTORS,
) -> Iterator[Found]:
    """Asks the retrieval checkpoint for a needle at each depth of a text of each length.

    The first question of a length reads its whole text; others go on from that, as far as the
    engine keeps what it read.
    """
    for length in lengths:
        text = haystack(length, depths, seed, distractors)
        for question in text.questions:
            params = SamplingParams(temperature=0, max_tokens=len(question.answer_ids) + 1)
            began = time.perf_counter()
            [answer] = llm.generate([text.prompt(question)], params)
            seconds = time.perf_counter() - began
            exact = answer.token_ids == question.answer_ids and answer.finish_reason == "stop"
            yield Found(length, question.depth, exact, answer.error or answer.text.strip(), seconds)
