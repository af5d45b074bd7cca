"""Caches of finished requests, so that a chat's next turn does not read its history again.

Whole sequences, a few of them, compared token by token: not a tree of shared pages. What is kept
is bounded by a count of positions; the longest unused goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourbee.kernels.operations import IntArray, SequenceCache

# Below this many common tokens, copying a cache saves nothing worth having.
MIN_COMMON = 16


# Compared by identity: arrays have no truth value.
@dataclass(frozen=True, eq=False)
class _Entry:
    token_ids: IntArray
    cache: SequenceCache


class PrefixCache:
    """Idle caches with the tokens they hold, the longest unused first."""

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens`: positions of all kept caches together, with the room they grew; 0 = off."""
        self._max_tokens = max_tokens
        self._entries: list[_Entry] = []

    @property
    def size(self) -> int:
        """Positions that the kept caches take up."""
        return sum(entry.cache.capacity for entry in self._entries)

    def longest(self, token_ids: Sequence[int]) -> tuple[SequenceCache, int] | None:
        """The cache with the most of these first tokens, and how many; it stays here: fork it."""
        wanted = np.asarray(token_ids, dtype=np.int64)
        best, length = None, MIN_COMMON - 1
        for entry in self._entries:
            common = _common_length(entry.token_ids, wanted)
            if common > length:
                best, length = entry, common
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        return best.cache, length

    def keep(self, token_ids: Sequence[int], cache: SequenceCache) -> None:
        """Keeps a cache that holds these tokens and is written no more."""
        kept = np.asarray(token_ids, dtype=np.int64)
        if len(kept) < MIN_COMMON or cache.capacity > self._max_tokens:
            return
        # What the new one holds too is not kept twice.
        self._entries = [
            entry
            for entry in self._entries
            if _common_length(entry.token_ids, kept) < len(entry.token_ids)
        ]
        self._entries.append(_Entry(kept, cache))
        while self.size > self._max_tokens:
            del self._entries[0]


def _common_length(first: IntArray, second: IntArray) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
