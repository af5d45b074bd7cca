"""Attention in NumPy over per-sequence caches: what serves where nothing faster can be had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fourbee.kernels.attention_pattern import AttentionPattern, Causal, variant_table
from fourbee.kernels.operations import FloatArray, IntArray

# Positions a cache grows by at least; it doubles beyond that.
_FIRST_CAPACITY = 256
# Scores that exist at a time (64 MB).
_MOST_SCORES = 1 << 24


class NumpyCache:
    """Keys and values of one sequence, `[layers, G, capacity, K]` each."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int) -> None:
        self.keys = np.empty((layers, kv_heads, 0, head_dim), dtype=np.float32)
        self.values = np.empty_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        return int(self.keys.shape[2])

    def reserve(self, length: int) -> None:
        """Makes room for `length` positions in all, keeping what is filled."""
        if length > self.capacity:
            capacity = max(_FIRST_CAPACITY, 2 * self.capacity, length)
            self.keys = self._grown(self.keys, capacity)
            self.values = self._grown(self.values, capacity)

    def fork(self, length: int) -> NumpyCache:
        """An independent copy of the first `length` positions."""
        assert 0 <= length <= self.length
        layers, kv_heads, _, head_dim = self.keys.shape
        copy = NumpyCache(layers, kv_heads, head_dim)
        copy.reserve(length)
        copy.keys[:, :, :length] = self.keys[:, :, :length]
        copy.values[:, :, :length] = self.values[:, :, :length]
        copy.length = length
        return copy

    def _grown(self, old: FloatArray, capacity: int) -> FloatArray:
        layers, kv_heads, _, head_dim = old.shape
        new = np.empty((layers, kv_heads, capacity, head_dim), dtype=np.float32)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new


class NumpyAttention:
    """Attention of one step: rows are, in order, `count` new positions of each cache."""

    def __init__(
        self,
        chunks: Sequence[tuple[NumpyCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> None:
        self._chunks = tuple(chunks)
        self._patterns = tuple(patterns or [Causal()] * len(chunks))
        self._slopes = slopes
        # Lengths before this step: each layer writes behind them, the last layer moves them on.
        self._starts = tuple(cache.length for cache, _ in chunks)
        for cache, count in chunks:
            cache.reserve(cache.length + count)

    def __call__(
        self, layer: int, query_QTHK: FloatArray, key_TGK: FloatArray, value_TGK: FloatArray
    ) -> FloatArray:
        context_THK: FloatArray = np.empty_like(query_QTHK[0])
        row = 0
        steps = zip(self._chunks, self._starts, self._patterns, strict=True)
        for (cache, count), start, pattern in steps:
            rows, end = slice(row, row + count), start + count
            cache.keys[layer][:, start:end] = key_TGK[rows].transpose(1, 0, 2)
            cache.values[layer][:, start:end] = value_TGK[rows].transpose(1, 0, 2)
            keys_GSK, values_GSK = cache.keys[layer][:, :end], cache.values[layer][:, :end]
            if self._slopes is None and isinstance(pattern, Causal):
                _attend(query_QTHK[0, rows], keys_GSK, values_GSK, context_THK[rows])
            else:
                seen_by = variant_table(pattern, start, count)
                query = query_QTHK[:, rows]
                _attend_pattern(
                    query, keys_GSK, values_GSK, seen_by, self._slopes, context_THK[rows]
                )
            if layer == len(cache.keys) - 1:
                cache.length = end
            row += count
        count, num_heads, head_dim = context_THK.shape
        return context_THK.reshape(count, num_heads * head_dim)


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
    slopes_H: FloatArray | None,
    out_THK: FloatArray,
) -> None:
    """Attention of rows to the keys that `variants_TS` gives a variant, one row at a time."""
    _, count, num_heads, head_dim = query_QTHK.shape
    groups, length, _ = keys_GSK.shape
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
            distances = (length - count + row - seen).astype(np.float32)
            scores -= slopes_H.reshape(groups, -1, 1) * distances
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        out_THK[row] = (scores @ values_GSK[:, seen]).reshape(num_heads, head_dim)
