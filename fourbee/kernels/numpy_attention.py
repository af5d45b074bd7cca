"""Attention in NumPy over pages: what serves where nothing faster can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fourbee.kernels.attention_pattern import (
    PAGE_KEYS,
    AttentionPattern,
    Causal,
    LayeredPattern,
    page_table,
    variant_table,
)
from fourbee.kernels.operations import FloatArray, IntArray
from fourbee.kernels.paged_cache import DROPPED, PagedCache, held_positions

# Scores that exist at a time (64 MB).
_MOST_SCORES = 1 << 24


class NumpyPages:
    """Pages `[pages, layers, 2, G, 64, K]`: keys, then values."""

    kind = "float32"

    def __init__(self, layers: int, kv_heads: int, head_dim: int, pages: int) -> None:
        self.array = np.zeros((pages, layers, 2, kv_heads, PAGE_KEYS, head_dim), dtype=np.float32)

    @property
    def pages(self) -> int:
        return len(self.array)

    @property
    def page_bytes(self) -> int:
        return int(self.array[0].nbytes)

    def clear(self, page: int) -> None:
        self.array[page] = 0

    def copy(self, source: int, target: int) -> None:
        self.array[target] = self.array[source]

    def read(self, page: int) -> memoryview:
        view: memoryview = self.array[page].data
        return view.cast("B")

    def fill(self, page: int, read_into: Callable[[memoryview], bool]) -> bool:
        return read_into(self.read(page))

    def store(self, cache: PagedCache, layer: int, start: int, rows_2TGK: FloatArray) -> None:
        """Writes keys and values of the positions from `start` on."""
        positions = np.arange(start, start + rows_2TGK.shape[1])
        pages = np.array(cache.pages, dtype=np.int64)[positions // PAGE_KEYS]
        for part, rows in enumerate(rows_2TGK):
            self.array[pages, layer, part, :, positions % PAGE_KEYS] = rows

    def load(self, cache: PagedCache, layer: int, part: int, end: int) -> FloatArray:
        """Keys (part 0) or values (1) of `held_positions(cache, end)`, `[G, S, K]`."""
        table = np.array(cache.pages[: -(-end // PAGE_KEYS)], dtype=np.int64)
        pages = table[table != DROPPED]
        rows: FloatArray = self.array[pages, layer, part].transpose(1, 0, 2, 3)
        joined: FloatArray = rows.reshape(len(rows), -1, rows.shape[-1])
        return joined[:, : joined.shape[1] - (-end % PAGE_KEYS)]


class NumpyAttention:
    """Attention of one step: rows are, in order, `count` new positions of each cache."""

    def __init__(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> None:
        self._chunks = tuple(chunks)
        self._patterns = tuple(patterns or [Causal()] * len(chunks))
        self._slopes = slopes
        # Lengths before this step: each layer writes behind them, the last layer moves them on.
        self._starts = tuple(cache.length for cache, _ in chunks)
        assert all(cache.capacity >= cache.length + count for cache, count in chunks)

    def __call__(
        self, layer: int, query_QTHK: FloatArray, key_TGK: FloatArray, value_TGK: FloatArray
    ) -> FloatArray:
        context_THK: FloatArray = np.empty_like(query_QTHK[0])
        row = 0
        steps = zip(self._chunks, self._starts, self._patterns, strict=True)
        for (cache, count), start, pattern in steps:
            rows, end = slice(row, row + count), start + count
            pool = cache.pool
            assert isinstance(pool, NumpyPages), "a pool belongs to the operations that made it"
            pool.store(cache, layer, start, np.stack((key_TGK[rows], value_TGK[rows])))
            keys_GSK, values_GSK = (pool.load(cache, layer, part, end) for part in (0, 1))
            positions = held_positions(cache, end)
            seen_by = _seen_by(
                pattern, layer, start, query_QTHK[0, rows], key_TGK[rows], positions, self._slopes
            )
            if seen_by is None:
                _attend(query_QTHK[0, rows], keys_GSK, values_GSK, context_THK[rows])
            else:
                distances = np.arange(start, end)[:, None] - positions
                _attend_pattern(
                    query_QTHK[:, rows], keys_GSK, values_GSK, seen_by, distances, self._slopes,
                    context_THK[rows],
                )  # fmt: skip
            if layer == pool.array.shape[1] - 1:
                cache.length = end
            row += count
        count, num_heads, head_dim = context_THK.shape
        return context_THK.reshape(count, num_heads * head_dim)


def _seen_by(
    pattern: AttentionPattern, layer: int, start: int, query_THK: FloatArray, key_TGK: FloatArray,
    positions: IntArray, slopes: FloatArray | None,
) -> IntArray | None:  # fmt: skip
    """`variant_table` of a chunk's rows; None where they see all before them at no cost."""
    if isinstance(pattern, LayeredPattern):
        assert slopes is None, "slopes are of spans"
        seen = pattern.seen_pages(layer, start, query_THK, key_TGK)
        return None if seen is None else page_table(seen, start)
    if slopes is None and isinstance(pattern, Causal):
        return None
    return variant_table(pattern, start, len(query_THK), positions)


def _attend(
    query_THK: FloatArray, keys_GSK: FloatArray, values_GSK: FloatArray, out_THK: FloatArray
) -> None:
    """Causal attention where the last query sees the last key, some rows at a time."""
    count, num_heads, head_dim = query_THK.shape
    groups, length, _ = keys_GSK.shape
    share = num_heads // groups
    scale = np.float32(head_dim**-0.5)
    step = max(1, _MOST_SCORES // max(1, num_heads * length))
    for begin in range(0, count, step):
        end = min(count, begin + step)
        seen = length - count + end  # keys that the last of these rows sees
        # The query heads of a group become rows of one product: [G, share * rows, K].
        query = (query_THK[begin:end] * scale).transpose(1, 0, 2).reshape(groups, -1, head_dim)
        scores = query @ keys_GSK[:, :seen].transpose(0, 2, 1)
        by_row = scores.reshape(groups, share, end - begin, seen)
        future = np.arange(seen) > np.arange(seen - (end - begin), seen)[:, None]
        by_row[..., future] = -np.inf
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        context = (scores @ values_GSK[:, :seen]).reshape(num_heads, end - begin, head_dim)
        out_THK[begin:end] = context.transpose(1, 0, 2)


def _attend_pattern(
    query_QTHK: FloatArray,
    keys_GSK: FloatArray,
    values_GSK: FloatArray,
    variants_TS: IntArray,
    distances_TS: IntArray,
    slopes_H: FloatArray | None,
    out_THK: FloatArray,
) -> None:
    """Attention of rows to the keys that `variants_TS` gives a variant, one row at a time."""
    _, count, num_heads, head_dim = query_QTHK.shape
    groups = len(keys_GSK)
    scale = np.float32(head_dim**-0.5)
    for row in range(count):
        seen = np.flatnonzero(variants_TS[row] >= 0)
        query_QGHK = (query_QTHK[:, row] * scale).reshape(-1, groups, num_heads // groups, head_dim)
        keys_GNK = keys_GSK[:, seen]
        scores = np.empty((groups, num_heads // groups, len(seen)), dtype=np.float32)
        for variant in np.unique(variants_TS[row, seen]):
            its = variants_TS[row, seen] == variant
            scores[..., its] = query_QGHK[variant] @ keys_GNK[:, its].transpose(0, 2, 1)
        if slopes_H is not None:
            distances = distances_TS[row, seen].astype(np.float32)
            scores -= slopes_H.reshape(groups, -1, 1) * distances
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        out_THK[row] = (scores @ values_GSK[:, seen]).reshape(num_heads, head_dim)
