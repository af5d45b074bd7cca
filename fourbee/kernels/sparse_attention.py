"""Block-sparse reading of prompts: which pages of keys a page of queries looks at, layer by layer.

Chosen while the prompt is read, from the queries and keys themselves, without a table made before
(as XAttention, Xu et al. 2025, arXiv 2503.16428, and MInference's dynamic heads do). A page of keys
stands for itself by their mean, sixteen rows of queries by theirs; softmax over pages estimates
where each head's attention goes, and a page is worth what the keenest head gives it. The first
page, the last ones and the own are always seen. What follows the whole pages of a prompt is dense:
its end, where the question is, and the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fourbee.kernels.attention_pattern import PAGE_KEYS, Spans
from fourbee.kernels.operations import FloatArray

# Rows of queries that are averaged.
_MERGED_ROWS = 16


@dataclass(frozen=True)
class PageBudget:
    """How many pages a page of queries sees: a share of those up to its own, but some at least."""

    share: float = 0.125
    least: int = 32
    recent: int = 4  # the last ones, its own among them

    def __post_init__(self) -> None:
        assert 0 < self.share <= 1 and self.recent >= 1 and self.least > self.recent


class SparsePrompt:
    """What the rows of one sequence see, and the means of its pages so far, layer by layer.

    Rows before position `until`, whole pages of the prompt, come in whole pages.
    """

    variants: ClassVar[int] = 1

    def __init__(self, budget: PageBudget, until: int) -> None:
        self._budget = budget
        self._until = until
        self._means: dict[int, FloatArray] = {}  # [pages, G, K], by layer

    def seen_pages(
        self, layer: int, start: int, query_THK: FloatArray, key_TGK: FloatArray
    ) -> npt.NDArray[np.bool_] | None:
        """Of each page of rows from position `start` on the pages it sees, `[blocks, pages]`.

        None where the rows see all before them.
        """
        if start >= self._until:
            return None
        assert start % PAGE_KEYS == len(query_THK) % PAGE_KEYS == 0, "expected whole pages"
        first = start // PAGE_KEYS
        return chosen_pages(query_THK, self._extended(layer, first, key_TGK), first, self._budget)

    def spans(self, start: int, count: int) -> Spans:
        raise AssertionError("what its rows see is asked layer by layer")

    def _extended(self, layer: int, first: int, key_TGK: FloatArray) -> FloatArray:
        """Means of all pages so far, the new ones with them, `[pages, G, K]`."""
        _, heads, size = key_TGK.shape
        new = key_TGK.reshape(-1, PAGE_KEYS, heads, size).mean(axis=1, dtype=np.float32)
        here, needed = self._means.get(layer), first + len(new)
        if here is None:
            pages = -(-self._until // PAGE_KEYS)
            self._means[layer] = here = np.empty((pages, heads, size), dtype=np.float32)
        here[first:needed] = new
        return here[:needed]


def chosen_pages(
    query_THK: FloatArray, means_PGK: FloatArray, first: int, budget: PageBudget
) -> npt.NDArray[np.bool_]:
    """Pages `[blocks, pages]` that pages of queries see; the first of them is page `first`.

    What a page of queries sees depends on its own rows and the pages up to its own alone: each is
    computed by itself, in the same shapes whatever else is in the step.
    """
    _, num_heads, size = query_THK.shape
    merged = query_THK.reshape(-1, _MERGED_ROWS, num_heads, size).mean(axis=1, dtype=np.float32)
    merged *= np.float32(size**-0.5)
    blocks = merged.reshape(-1, PAGE_KEYS // _MERGED_ROWS, num_heads, size)
    seen = np.zeros((len(blocks), len(means_PGK)), dtype=np.bool_)
    for block, rows in enumerate(blocks):
        own = first + block
        count = max(budget.least, math.ceil(budget.share * (own + 1)))
        if count > own:
            seen[block, : own + 1] = True
            continue
        worth = _estimated(rows, means_PGK[: own + 1])
        worth[0] = worth[own + 1 - budget.recent :] = np.inf
        seen[block, np.argpartition(worth, -count)[-count:]] = True
    return seen


def _estimated(rows_RHK: FloatArray, means_PGK: FloatArray) -> FloatArray:
    """The most that any head's merged rows attend to each page, `[P]`."""
    groups, size = means_PGK.shape[1:]
    by_group = rows_RHK.swapaxes(0, 1).reshape(groups, -1, size)
    scores = by_group @ means_PGK.transpose(1, 2, 0)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    most: FloatArray = scores.max(axis=(0, 1))
    return most
