"""Which keys the rows of a sequence see, and with which variant of their queries.

A pattern turns positions into spans of key positions; kernels know spans and no pattern. Plain
causal attention is one span with variant 0. A row always sees itself and nothing behind itself.
Not here: the rotations that the variants stand for (`model/positions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fourbee.kernels.operations import FloatArray, IntArray

# Positions of a page; `PageLists` names pages.
PAGE_KEYS = 64


@dataclass(frozen=True)
class Spans:
    """Keys of consecutive rows: row i sees `ranges[offsets[i] : offsets[i + 1]]`.

    `ranges` `[N, 3]` holds begin, end and variant of `begin <= key < end`. Those of a row ascend,
    do not overlap, are not empty, and the last one ends with the row itself.
    """

    offsets: IntArray
    ranges: IntArray


class AttentionPattern(Protocol):
    """What each row of one sequence sees. Immutable."""

    @property
    def variants(self) -> int:
        """Query variants that its spans name: 0 to `variants - 1`."""
        ...

    def spans(self, start: int, count: int) -> Spans:
        """Of the rows at positions `start` to `start + count - 1`."""
        ...


@runtime_checkable
class LayeredPattern(Protocol):
    """What rows see where that is another in each layer, by their queries and keys."""

    def seen_pages(
        self, layer: int, start: int, query_THK: FloatArray, key_TGK: FloatArray
    ) -> npt.NDArray[np.bool_] | None:
        """`[pages of rows, pages]`; rows come in whole pages. None for all keys before them."""
        ...


@dataclass(frozen=True)
class Causal:
    """A row sees itself and every key before."""

    variants: ClassVar[int] = 1

    def spans(self, start: int, count: int) -> Spans:
        ends = np.arange(start, start + count) + 1
        return _spans((np.zeros_like(ends), ends, 0))


@dataclass(frozen=True)
class SlidingWindow:
    """The last `window` positions, the row's own among them, and the first `sinks`.

    Attention sinks as in Xiao et al. 2023 (arXiv 2309.17453). `sink_variant` is the query variant
    of sinks outside the window: 1 where a second rotation brings them near, 0 where their distance
    stays what it is.
    """

    window: int
    sinks: int = 0
    sink_variant: int = 0

    def __post_init__(self) -> None:
        assert self.window >= 1 and self.sinks >= 0 and self.sink_variant >= 0

    @property
    def variants(self) -> int:
        return self.sink_variant + 1

    def spans(self, start: int, count: int) -> Spans:
        ends = np.arange(start, start + count) + 1
        begins = np.maximum(ends - self.window, 0)
        sinks = (np.zeros_like(ends), np.minimum(begins, self.sinks), self.sink_variant)
        return _spans(sinks, (begins, ends, 0))


@dataclass(frozen=True)
class DualChunk:
    """Dual-chunk attention (An et al. 2024, arXiv 2402.17463) over chunks of `chunk` positions.

    Keys of a row's own chunk take variant 0, of the chunk before it variant 1 (successive), of all
    earlier ones variant 2 (inter).
    """

    chunk: int
    variants: ClassVar[int] = 3

    def __post_init__(self) -> None:
        assert self.chunk >= 1

    def spans(self, start: int, count: int) -> Spans:
        positions = np.arange(start, start + count)
        own = positions // self.chunk * self.chunk
        before = np.maximum(own - self.chunk, 0)
        nothing = np.zeros_like(own)
        return _spans((nothing, before, 2), (before, own, 1), (own, positions + 1, 0))


@dataclass(frozen=True)
class PageLists:
    """Block-sparse attention: the rows of page i see the pages `lists[i]`, and their own.

    A page is 64 positions, a block of queries and of keys alike; pages behind the rows' own are
    left out. Rows beyond the lists see their own page alone.
    """

    lists: tuple[tuple[int, ...], ...]
    variants: ClassVar[int] = 1

    def spans(self, start: int, count: int) -> Spans:
        offsets, parts = [np.zeros(1, np.int64)], [np.empty((0, 3), np.int64)]
        stop, total = start + count, 0
        for page in range(start // PAGE_KEYS, -(-stop // PAGE_KEYS)):
            begin, end = max(start, page * PAGE_KEYS), min(stop, (page + 1) * PAGE_KEYS)
            ranges = _runs(self.lists[page] if page < len(self.lists) else (), page)
            rows = np.tile(ranges, (end - begin, 1, 1))
            rows[:, -1, 1] = np.arange(begin, end) + 1
            parts.append(rows.reshape(-1, 3))
            offsets.append(total + len(ranges) * np.arange(1, end - begin + 1))
            total += len(parts[-1])
        return Spans(np.concatenate(offsets), np.concatenate(parts))


def variant_table(
    pattern: AttentionPattern, start: int, count: int, positions: IntArray | None = None
) -> IntArray:
    """`[count, S]`: the variant that each row scores each key with; -1 for none.

    `positions` are those of the S keys, ascending: all up to the last row's where they are None.
    """
    if positions is None:
        positions = np.arange(start + count)
    table = np.full((count, len(positions)), -1, dtype=np.int64)
    spans = pattern.spans(start, count)
    rows = np.repeat(np.arange(count), np.diff(spans.offsets))
    begins, ends = (np.searchsorted(positions, spans.ranges[:, side]) for side in (0, 1))
    for row, begin, end, variant in zip(rows, begins, ends, spans.ranges[:, 2], strict=True):
        table[row, begin:end] = variant
    return table


def page_table(seen: npt.NDArray[np.bool_], start: int) -> IntArray:
    """`variant_table` of rows that see pages, whole ones of rows: 0, or -1 for none."""
    count = len(seen) * PAGE_KEYS
    by_key = seen.repeat(PAGE_KEYS, axis=0).repeat(PAGE_KEYS, axis=1)
    positions = np.arange(start + count)
    return np.where(by_key & (positions <= positions[start:, None]), 0, -1)


def step_spans(
    patterns: Sequence[AttentionPattern], starts: IntArray, counts: IntArray, explicit: bool
) -> tuple[IntArray, IntArray]:
    """Offsets and ranges of all rows of a step, a sequence after the other.

    Rows of `Causal` sequences, and of those that are asked in each layer, have none unless
    `explicit`: kernels take them for plain.
    """
    offsets, ranges = [np.zeros(1, dtype=np.int64)], [np.empty((0, 3), dtype=np.int64)]
    total = 0
    for pattern, start, count in zip(patterns, starts, counts, strict=True):
        if isinstance(pattern, Causal | LayeredPattern) and not explicit:
            offsets.append(np.full(count, total))
            continue
        spans = pattern.spans(int(start), int(count))
        offsets.append(spans.offsets[1:] + total)
        ranges.append(spans.ranges)
        total += len(spans.ranges)
    return np.concatenate(offsets), np.concatenate(ranges)


def _spans(*columns: tuple[IntArray, IntArray, int]) -> Spans:
    """Spans of which every row has one a column: (begins, ends, variant); empty ones go."""
    begins, ends = (np.stack([column[i] for column in columns], axis=1) for i in (0, 1))
    variants = np.broadcast_to([column[2] for column in columns], begins.shape)
    filled = begins < ends
    ranges = np.stack((begins, ends, variants), axis=-1)[filled]
    return Spans(np.concatenate(([0], np.cumsum(filled.sum(axis=1)))), ranges)


def _runs(pages: Sequence[int], own: int) -> IntArray:
    """Ranges `[N, 3]` of neighbouring pages up to `own`, which is always one of them."""
    kept = np.array(sorted({page for page in pages if 0 <= page < own} | {own}), dtype=np.int64)
    breaks = np.flatnonzero(np.diff(kept) > 1) + 1
    firsts = kept[np.concatenate(([0], breaks))]
    lasts = kept[np.concatenate((breaks - 1, [len(kept) - 1]))]
    keys = (firsts * PAGE_KEYS, (lasts + 1) * PAGE_KEYS)
    return np.stack((*keys, np.zeros_like(firsts)), axis=1)
