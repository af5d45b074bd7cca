"""Attention of the native kernels over paged keys and values.

The pages of a step's sequences lie in one pool, in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fourbee.kernels import _native
from fourbee.kernels.attention_pattern import AttentionPattern, Causal, LayeredPattern, step_spans
from fourbee.kernels.operations import FloatArray, IntArray
from fourbee.kernels.paged_cache import PagedCache


class NativePages:
    """A pool of the kernels: `fourbee/kernels/paged_cache.py` says what it is."""

    def __init__(self, native: _native.KvPool, kind: str) -> None:
        self.native = native
        self.kind = kind

    @property
    def pages(self) -> int:
        return self.native.pages

    @property
    def page_bytes(self) -> int:
        return self.native.page_bytes

    def clear(self, page: int) -> None:
        self.native.clear(page)

    def copy(self, source: int, target: int) -> None:
        self.native.copy(source, target)

    def read(self, page: int) -> memoryview:
        return self.native.view(page).data

    def fill(self, page: int, read_into: Callable[[memoryview], bool]) -> bool:
        return read_into(self.native.view(page).data)


_NO_SLOPES = np.empty(0, dtype=np.float32)


class PagedAttention:
    """Attention of one step: rows are, in order, `count` new positions of each cache.

    `patterns` is what each cache's rows see (all keys up to their own where it is None) and
    `slopes` ALiBi's of the query heads. What is plain runs in kernels that know of neither.
    """

    def __init__(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> None:
        self._caches = tuple(cache for cache, _ in chunks)
        assert len({id(cache.pool) for cache in self._caches}) <= 1, "a step has one pool"
        self._counts = np.array([count for _, count in chunks], dtype=np.int64)
        self._starts = np.array([cache.length for cache in self._caches], dtype=np.int64)
        pages: list[int] = []
        offsets = [0]
        for cache, count in chunks:
            assert cache.capacity >= cache.length + count
            pages += cache.pages
            offsets.append(len(pages))
        self._pages = np.array(pages, dtype=np.int64)
        self._page_offsets = np.array(offsets, dtype=np.int64)
        self._spans: tuple[IntArray, IntArray, FloatArray] | None = None
        self._variants = 1
        self._layered: list[tuple[int, LayeredPattern]] = []
        patterns = patterns or [Causal()] * len(chunks)
        if slopes is not None or not all(isinstance(one, Causal) for one in patterns):
            self._variants = max((pattern.variants for pattern in patterns), default=1)
            self._layered = [
                (number, one)
                for number, one in enumerate(patterns)
                if isinstance(one, LayeredPattern)
            ]
            assert slopes is None or not self._layered, "slopes are of spans"
            spans = step_spans(patterns, self._starts, self._counts, explicit=slopes is not None)
            self._spans = (*spans, _NO_SLOPES if slopes is None else slopes)

    @property
    def plain(self) -> bool:
        """Whether every row sees all keys up to its own, and nothing depends on the distance."""
        return self._spans is None

    @property
    def pool(self) -> _native.KvPool:
        """The pool of all the caches' pages."""
        pool = self._caches[0].pool
        assert isinstance(pool, NativePages), "a pool belongs to the operations that made it"
        return pool.native

    @property
    def sequences(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Counts, starts, page offsets and pages, as the native calls take them."""
        return self._counts, self._starts, self._page_offsets, self._pages

    def advance(self) -> None:
        """The caches hold the new rows: after the last layer."""
        for cache, start, count in zip(self._caches, self._starts, self._counts, strict=True):
            cache.length = int(start + count)

    def __call__(
        self, layer: int, query_QTHK: FloatArray, key_TGK: FloatArray, value_TGK: FloatArray
    ) -> FloatArray:
        context_THK: FloatArray = np.empty_like(query_QTHK[0])
        rows, num_heads, head_dim = context_THK.shape
        if not self._caches:
            return context_THK.reshape(rows, num_heads * head_dim)
        assert len(query_QTHK) >= self._variants, "a pattern names a variant of the query"
        if self._spans is None:
            _native.attend(
                self.pool, layer, query_QTHK[0], key_TGK, value_TGK, *self.sequences, context_THK
            )
        else:
            _native.attend_spans(
                self.pool, layer, query_QTHK, key_TGK, value_TGK, *self.sequences, *self._spans,
                *self._seen(layer, query_QTHK[0], key_TGK), context_THK,
            )  # fmt: skip
        if layer == self.pool.layers - 1:
            self.advance()
        return context_THK.reshape(rows, num_heads * head_dim)

    def _seen(
        self, layer: int, query_THK: FloatArray, key_TGK: FloatArray
    ) -> tuple[IntArray, npt.NDArray[np.uint8]]:
        """Where each sequence's part of the bytes begins, and a bit for each page that is seen."""
        sizes = np.zeros(len(self._caches), dtype=np.int64)
        parts = [np.empty(0, dtype=np.uint8)]
        rows = np.concatenate(([0], np.cumsum(self._counts)))
        for index, pattern in self._layered:
            here = slice(rows[index], rows[index + 1])
            start = int(self._starts[index])
            seen = pattern.seen_pages(layer, start, query_THK[here], key_TGK[here])
            if seen is not None:
                parts.append(np.packbits(seen, axis=1, bitorder="little").ravel())
                sizes[index] = len(parts[-1])
        return np.concatenate(([0], np.cumsum(sizes))), np.concatenate(parts)
