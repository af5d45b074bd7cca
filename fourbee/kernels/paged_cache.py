"""Pages of keys and values, and one sequence's table of them.

A pool is storage alone: whose a page is, and when it is free, is the engine's (`page_pool.py`
there). Page-major: all layers of a page in one piece, so that a page is one write to the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np

from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.kernels.operations import IntArray, Operations

# In a table, a page that the sequence's spans leave out and that is no longer held.
DROPPED = -1


class KvPages(Protocol):
    """Storage of `pages` pages of 64 positions, in one layout. Zero until it is written."""

    @property
    def pages(self) -> int: ...

    @property
    def page_bytes(self) -> int: ...

    @property
    def kind(self) -> str:
        """What numbers are kept in: `float32`, `bfloat16`, `int8` or `int4`, or a like name."""
        ...

    def clear(self, page: int) -> None:
        """Zeroes a page: done whenever it is handed out, so that nothing of its past is read."""
        ...

    def copy(self, source: int, target: int) -> None: ...

    def read(self, page: int) -> memoryview:
        """Its `page_bytes` bytes, as they are until the page is written next."""
        ...

    def fill(self, page: int, read_into: Callable[[memoryview], bool]) -> bool:
        """Lets `read_into` write what `read` gave once; what it says. After False the page is
        anything."""
        ...


@dataclass(eq=False)
class PagedCache:
    """Keys and values of one sequence: `length` positions are filled, of those that `pages` hold.

    Attention writes the rows of a step behind them and moves `length` on after the last layer.
    """

    pool: KvPages
    pages: list[int] = field(default_factory=list)
    length: int = 0

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return len(self.pages) * PAGE_KEYS


def held_positions(cache: PagedCache, end: int) -> IntArray:
    """Those of the first `end` positions whose pages were not dropped."""
    pages = np.array(cache.pages[: -(-end // PAGE_KEYS)], dtype=np.int64)
    held = np.flatnonzero(pages != DROPPED)
    positions: IntArray = (held[:, None] * PAGE_KEYS + np.arange(PAGE_KEYS)).ravel()
    return positions[positions < end]


def own_caches(
    ops: Operations, layers: int, kv_heads: int, head_dim: int, capacities: Sequence[int]
) -> list[PagedCache]:
    """Caches that have a pool to themselves, for sequences outside an engine."""
    ends = list(accumulate(-(-capacity // PAGE_KEYS) for capacity in capacities))
    pool = ops.new_pool(layers, kv_heads, head_dim, ends[-1])
    return [
        PagedCache(pool, list(range(begin, end)))
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


def own_cache(
    ops: Operations, layers: int, kv_heads: int, head_dim: int, capacity: int = 8192
) -> PagedCache:
    """A cache that has a pool to itself."""
    return own_caches(ops, layers, kv_heads, head_dim, [capacity])[0]
