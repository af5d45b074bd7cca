"""How much faster prompts are read block-sparse.

Steps of 512 rows at some depths, dense and sparse in turn, over copies of a real page, as reading
all of a long text would take many minutes. A prompt's time is the integral over its depths; weights
are random, as speed does not depend on them. What is still found: `fourbee bench needle`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fourbee.benchmarks.shapes import random_model
from fourbee.engine.model_runner import ModelRunner
from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import Chunk
from fourbee.engine.sequence import Sequence
from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.kernels.operations import FloatArray
from fourbee.kernels.sparse_attention import PageBudget, SparsePrompt
from fourbee.model.attention_modes import AttentionMode, DenseMode, SparseMode

ROWS = 512
_PARTS = 4  # depths between which a step's time is taken for a straight line

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Depth:
    """A step of 512 rows behind so many tokens: seconds, and the pages that its last rows see."""

    depth: int
    dense_seconds: float
    sparse_seconds: float
    pages: int


@dataclass(frozen=True)
class SparseReading:
    """Of one length; seconds of whole prompts are integrals over the depths."""

    tokens: int
    budget: PageBudget
    depths: tuple[Depth, ...]
    dense_seconds: float
    sparse_seconds: float


def measure_sparse(
    shape: str, tokens: int, rounds: int, threads: int | None, tell: Tell
) -> SparseReading:
    """Reads a text of so many tokens, in int4 with int8 keys and values."""
    weights, ops = random_model(shape, "int4", threads)
    last = tokens // ROWS * ROWS - ROWS
    depths = [last * part // _PARTS // ROWS * ROWS for part in range(_PARTS + 1)]
    runner = ModelRunner(weights, ops, tokens // PAGE_KEYS)
    budget = PageBudget()
    found = []
    for depth in depths:
        dense_mode = DenseMode(tokens)
        sparse_mode = SparseMode(tokens, budget, _Known(budget, depth))
        times: dict[AttentionMode, list[float]] = {dense_mode: [], sparse_mode: []}
        for number in range(rounds + 1):  # one to warm up
            for mode, seconds in times.items():
                took = _step(runner, mode, depth)
                if number:
                    seconds.append(took)
        dense, sparse = (statistics.median(seconds) for seconds in times.values())
        seen = max(budget.least, math.ceil(budget.share * (depth + ROWS) / PAGE_KEYS))
        found.append(Depth(depth, dense, sparse, min(seen, (depth + ROWS) // PAGE_KEYS)))
        tell(f"depth {depth:,}: dense {dense:.2f} s, sparse {sparse:.2f} s")
    wholes = (
        _integral([one.dense_seconds for one in found], tokens // ROWS),
        _integral([one.sparse_seconds for one in found], tokens // ROWS),
    )
    return SparseReading(tokens, budget, tuple(found), *wholes)


def _integral(seconds: list[float], steps: int) -> float:
    """Of as many steps, between the depths on straight lines."""
    return steps / _PARTS * sum((a + b) / 2 for a, b in pairwise(seconds))


class _Known(SparsePrompt):
    """A prompt whose first pages are there already: their means are random."""

    def __init__(self, budget: PageBudget, depth: int) -> None:
        super().__init__(budget, depth + ROWS)
        self._depth = depth

    def seen_pages(
        self, layer: int, start: int, query_THK: FloatArray, key_TGK: FloatArray
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
        if layer not in self._means:
            random = np.random.default_rng(layer)
            shape = ((self._depth + ROWS) // PAGE_KEYS, *key_TGK.shape[1:])
            self._means[layer] = random.standard_normal(shape, dtype=np.float32)
        return super().seen_pages(layer, start, query_THK, key_TGK)


def _step(runner: ModelRunner, mode: AttentionMode, depth: int) -> float:
    ids = tuple(np.random.default_rng(0).integers(0, 1000, depth + ROWS).tolist())
    sequence = Sequence(Request("text", ids, SamplingParams()), len(ids) + 1, (), 0, mode=mode)
    sequence.pages = list(range(len(ids) // PAGE_KEYS))
    if depth:
        dense = Sequence(sequence.request, len(ids) + 1, (), 0, mode=DenseMode(len(ids)))
        dense.pages = sequence.pages
        runner.sample(runner.run((Chunk(dense, PAGE_KEYS),)))
        for page in sequence.pages[1:]:
            runner.storage.copy(sequence.pages[0], page)
        sequence.computed = depth
    began = time.perf_counter()
    runner.sample(runner.run((Chunk(sequence, ROWS),)))
    return time.perf_counter() - began
