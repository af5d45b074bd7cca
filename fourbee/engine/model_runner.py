"""A scheduled batch -> arrays -> hidden states -> sampled tokens and scores.

The only part of the engine that knows arrays and keys and values. It decides nothing: who runs is
the scheduler's, what a token means for its request is the engine's.

Shape legend as in `kernels/operations.py`; R here is the rows that reach the head.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fourbee.engine.request import ScoredToken
from fourbee.engine.scheduler import Chunk
from fourbee.engine.sequence import Sequence
from fourbee.kernels.operations import (
    Array,
    FloatArray,
    HeadRequest,
    HeadResult,
    IntArray,
    Network,
    Operations,
    PlanningOperations,
)
from fourbee.kernels.paged_cache import KvPages, PagedCache
from fourbee.model.attention_modes import AttentionMode, Positions
from fourbee.model.config import Qwen3Config
from fourbee.model.key_smoothing import smooth_keys
from fourbee.model.qwen3 import Qwen3Weights, forward

# Logits of this many rows exist at a time while a prompt is scored.
SCORED_ROWS = 64
# Below this, dividing by the temperature overflows float32: it is greedy then.
LEAST_TEMPERATURE = 1e-5
# More tokens than a vocabulary has: as `top_k`, no limit.
_ALL_TOKENS = 2**31


@dataclass(frozen=True)
class ChunkRows:
    """A chunk's rows that reach the head: the prompt's to be scored, then the sampled one."""

    chunk: Chunk
    first: int  # its first row of R
    targets: tuple[int, ...]  # the tokens that follow the scored rows

    @property
    def sampled(self) -> int:
        """The row, of R, whose next token is sampled, when the chunk samples."""
        return self.first + len(self.targets)

    @property
    def end(self) -> int:
        """One past its last row of R."""
        return self.sampled + self.chunk.samples


@dataclass(frozen=True)
class Step:
    """A step under way: hidden states may still be computing on a device."""

    parts: tuple[ChunkRows, ...]
    hidden_RD: Array


@dataclass(frozen=True)
class Outcome:
    """What a step did for one chunk. Where `finite` is False, tokens and scores mean nothing."""

    chunk: Chunk
    finite: bool
    token: ScoredToken | None  # the sampled token, when the chunk samples
    prompt_scores: tuple[ScoredToken, ...]


class ModelRunner:
    """The model, its operations, and the storage of keys and values."""

    def __init__(self, weights: Qwen3Weights, ops: Operations, kv_pages: int) -> None:
        self._weights = weights
        self._ops = ops
        self._network = _network(weights, ops)
        self.storage = new_storage(weights.config, ops, kv_pages)

    def interrupt(self) -> None:
        """From any thread: ends a step that is being computed, or else the next one, soon.

        Its `run` raises StepInterrupted. Nothing where operations cannot be interrupted.
        """
        if isinstance(self._ops, PlanningOperations):
            self._ops.interrupt()

    def run(self, chunks: tuple[Chunk, ...]) -> Step:
        """Starts a step: hidden states of the rows that reach the head."""
        parts = _rows_for_head(chunks)
        if not chunks:
            return Step(parts, None)
        token_ids: list[int] = []
        positions: list[Positions] = []
        rows: list[int] = []
        for part in parts:
            sequence, count = part.chunk.sequence, part.chunk.count
            start, end = sequence.computed, sequence.computed + count
            token_ids += sequence.token_ids[start:end]
            positions.append(_mode(sequence).positions(start, count))
            # The chunk's last rows, of which there are as many as it sends to the head.
            rows += range(len(token_ids) - (part.end - part.first), len(token_ids))
        caches = [
            (PagedCache(self.storage, one.sequence.pages, one.sequence.computed), one.count)
            for one in chunks
        ]
        patterns = [_mode(one.sequence).pattern for one in chunks]
        attention = self._ops.cached_attention(caches, patterns)
        hidden = self._network(
            self._ops,
            np.asarray(token_ids, dtype=np.int64),
            _side_by_side(positions),
            attention,
            np.asarray(rows, dtype=np.int64),
        )
        return Step(parts, hidden)

    def sample(self, step: Step) -> list[Outcome]:
        """Ends a step: an outcome for each of its chunks, in order."""
        sampled = self._sampled(step)
        scored = self._scored(step)
        outcomes: list[Outcome] = []
        for part in step.parts:
            rows = [scored[row] for row in range(part.first, part.sampled)]
            token, finite = None, all(fine for _, fine in rows)
            if part.chunk.samples:
                token, fine = sampled[part.sampled]
                finite &= fine
            outcomes.append(Outcome(part.chunk, finite, token, tuple(score for score, _ in rows)))
        return outcomes

    def _sampled(self, step: Step) -> dict[int, tuple[ScoredToken, bool]]:
        """The sampled tokens by row of R, and whether their logits were finite."""
        parts = [part for part in step.parts if part.chunk.samples]
        if not parts:
            return {}
        rows = np.array([part.sampled for part in parts], dtype=np.int64)
        sequences = [part.chunk.sequence for part in parts]
        result = self._ops.head(
            self._ops.select_rows(step.hidden_RD, rows),
            self._weights.head,
            head_request(sequences),
        )
        tops = [sequence.request.params.logprobs or 0 for sequence in sequences]
        return {
            int(row): _scored_token(result, index, top)
            for index, (row, top) in enumerate(zip(rows, tops, strict=True))
        }

    def _scored(self, step: Step) -> dict[int, tuple[ScoredToken, bool]]:
        """The scores of prompt tokens by row of R, and whether their logits were finite."""
        wanted = [
            (part.first + offset, target, part.chunk.sequence.request.prompt_logprobs or 0)
            for part in step.parts
            for offset, target in enumerate(part.targets)
        ]
        scored: dict[int, tuple[ScoredToken, bool]] = {}
        for begin in range(0, len(wanted), SCORED_ROWS):
            several = wanted[begin : begin + SCORED_ROWS]
            rows = np.array([row for row, _, _ in several], dtype=np.int64)
            result = self._ops.token_logprobs(
                self._ops.select_rows(step.hidden_RD, rows),
                self._weights.head,
                np.array([target for _, target, _ in several], dtype=np.int64),
                max(top for _, _, top in several),
            )
            for index, (row, _, top) in enumerate(several):
                scored[row] = _scored_token(result, index, top)
        return scored


def new_storage(config: Qwen3Config, ops: Operations, pages: int) -> KvPages:
    """Storage for keys and values of a model."""
    heads, head_dim = config.num_key_value_heads, config.head_dim
    return ops.new_pool(config.num_hidden_layers, heads, head_dim, pages)


def _network(weights: Qwen3Weights, ops: Operations) -> Network:
    """The forward pass over these weights, recorded where the operations can do that."""

    planning = ops if isinstance(ops, PlanningOperations) else None
    if planning and planning.rounds_keys:
        weights = smooth_keys(weights, ops)

    def run(
        ops: Any, token_ids: IntArray, positions: Array, attention: Any, rows: IntArray
    ) -> Array:
        return forward(weights, token_ids, positions, attention, ops, rows=rows).final

    return planning.planned(run) if planning else run


def head_request(sequences: list[Sequence]) -> HeadRequest:
    """What each sequence asks of the head, a row each."""
    params = [sequence.request.params for sequence in sequences]
    temperature = np.array([p.temperature for p in params], dtype=np.float32)
    biases = [(row, *_bias(sequence)) for row, sequence in enumerate(sequences)]
    return HeadRequest(
        temperature=np.where(temperature < LEAST_TEMPERATURE, np.float32(0), temperature),
        # Any number from the vocabulary's size on means all of it; some do not fit an integer.
        top_k=np.array([min(p.top_k, _ALL_TOKENS) for p in params], dtype=np.int64),
        top_p=np.array([p.top_p for p in params], dtype=np.float32),
        min_p=np.array([p.min_p for p in params], dtype=np.float32),
        seed=np.array([sequence.seed for sequence in sequences], dtype=np.uint64),
        position=np.array([sequence.position for sequence in sequences], dtype=np.int64),
        num_top=max(p.logprobs or 0 for p in params),
        bias=tuple(bias for bias in biases if len(bias[1])),
    )


def _bias(sequence: Sequence) -> tuple[IntArray, FloatArray]:
    """Token ids, each once, and what is added to their logits.

    Penalties count the answer's tokens, not the prompt's, as OpenAI's and vLLM's do.
    """
    params = sequence.request.params
    bias = dict(params.logit_bias)
    if params.presence_penalty or params.frequency_penalty:
        for token_id, count in Counter(sequence.generated_ids).items():
            penalty = params.presence_penalty + params.frequency_penalty * count
            bias[token_id] = bias.get(token_id, 0.0) - penalty
    return np.array(list(bias), dtype=np.int64), np.array(list(bias.values()), dtype=np.float32)


def _mode(sequence: Sequence) -> AttentionMode:
    """All of it, not only what the scheduler has to know."""
    return cast(AttentionMode, sequence.mode)


def _side_by_side(positions: list[Positions]) -> Positions:
    """`[Q, T]`: sequences of fewer variants than others have their first instead."""
    variants = max(len(one) for one in positions)
    return np.concatenate(
        [np.concatenate((one, *[one[:1]] * (variants - len(one)))) for one in positions], axis=1
    )


def _rows_for_head(chunks: tuple[Chunk, ...]) -> tuple[ChunkRows, ...]:
    """Which rows of each chunk reach the head, numbered through all chunks."""
    parts: list[ChunkRows] = []
    first = 0
    for chunk in chunks:
        sequence = chunk.sequence
        targets: tuple[int, ...] = ()
        if sequence.scoring:
            following = slice(sequence.computed + 1, sequence.computed + chunk.count + 1)
            targets = sequence.request.prompt_ids[following]
        parts.append(ChunkRows(chunk, first, targets))
        first = parts[-1].end
    return tuple(parts)


def _scored_token(result: HeadResult, row: int, num_top: int) -> tuple[ScoredToken, bool]:
    ids, logprobs = result.top_ids[row, :num_top], result.top_logprobs[row, :num_top]
    top = tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
    token = ScoredToken(int(result.token_ids[row]), float(result.logprobs[row]), top)
    return token, bool(result.finite[row])
