"""Patterns against their definitions, and every backend's attention over them against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.kernels.attention_pattern import (
    Causal,
    DualChunk,
    PageLists,
    SlidingWindow,
    step_spans,
    variant_table,
)
from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.paged_cache import own_caches
from fourbee.kernels.torch_ops import TorchOperations

BACKENDS = [
    "torch",
    "numpy",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(not native_built(), reason="native operations were not built"),
    ),
]


def defined(pattern, row: int, key: int) -> int:
    """The variant with which a row scores a key; -1 where it does not see it."""
    if key > row:
        return -1
    match pattern:
        case Causal():
            return 0
        case SlidingWindow(window, sinks, sink_variant):
            return 0 if row - key < window else sink_variant if key < sinks else -1
        case DualChunk(chunk):
            return min(row // chunk - key // chunk, 2)
        case PageLists(lists):
            listed = lists[row // 64] if row // 64 < len(lists) else ()
            return 0 if key // 64 in {*listed, row // 64} else -1
    raise AssertionError(pattern)


def table(pattern, start: int, count: int) -> np.ndarray:
    rows = [
        [defined(pattern, row, key) for key in range(start + count)]
        for row in range(start, start + count)
    ]
    return np.array(rows).reshape(count, start + count)


@st.composite
def patterns(draw):
    some_pages = st.lists(st.integers(0, 6), max_size=5).map(tuple)
    return draw(
        st.one_of(
            st.just(Causal()),
            st.builds(
                SlidingWindow, st.integers(1, 200), st.integers(0, 80), st.sampled_from([0, 1])
            ),
            st.builds(DualChunk, st.integers(1, 200)),
            st.builds(PageLists, st.lists(some_pages, max_size=6).map(tuple)),
        )
    )


@settings(max_examples=60, deadline=None)
@given(patterns(), st.integers(0, 300), st.integers(0, 150))
def test_spans_are_the_definition_and_in_order(pattern, start, count) -> None:
    spans = pattern.spans(start, count)
    assert spans.offsets.shape == (count + 1,) and spans.ranges.shape[1:] == (3,)
    for i in range(count):
        begins, ends, variants = spans.ranges[spans.offsets[i] : spans.offsets[i + 1]].T
        assert (begins < ends).all() and (begins[1:] >= ends[:-1]).all()
        assert ends[-1] == start + i + 1 and variants.max() < pattern.variants
    assert np.array_equal(variant_table(pattern, start, count), table(pattern, start, count))


def test_rows_of_plain_sequences_have_no_spans_unless_asked() -> None:
    sequences = [Causal(), SlidingWindow(2), Causal()]
    starts, counts = np.array([5, 0, 9]), np.array([2, 3, 1])
    offsets, ranges = step_spans(sequences, starts, counts, explicit=False)
    assert offsets.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert ranges.tolist() == [[0, 1, 0], [0, 2, 0], [1, 3, 0]]
    offsets, ranges = step_spans(sequences, starts, counts, explicit=True)
    assert offsets.tolist() == [0, 1, 2, 3, 4, 5, 6] and ranges[-1].tolist() == [0, 10, 0]


def attention64(query_QTHK, key, value, seen_by, slopes) -> np.ndarray:
    """Of the last rows of a sequence, `[T, H*K]`."""
    query, key, value = (x.astype(np.float64) for x in (query_QTHK, key, value))
    _, count, heads, size = query.shape
    share = heads // key.shape[1]
    key, value = key.repeat(share, axis=1), value.repeat(share, axis=1)
    scores = np.einsum("qthk,shk->qhts", query, key) / np.sqrt(size)
    scores = np.take_along_axis(scores, np.maximum(seen_by, 0)[None, None], axis=0)[0]
    if slopes is not None:
        rows = np.arange(len(key) - count, len(key))
        scores -= slopes[:, None, None] * (rows[:, None] - np.arange(len(key)))
    scores[:, seen_by < 0] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    context = np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), value)
    return context.reshape(count, -1)


class Step:
    """Random sequences: what is cached of each, and the rows that a step adds."""

    def __init__(self, rng, shape, lengths, counts) -> None:
        heads, kv_heads, size = shape
        self.shape, self.counts = shape, counts
        self.query = [rng.standard_normal((3, n, heads, size), np.float32) for n in lengths]
        self.key = [rng.standard_normal((n, kv_heads, size), np.float32) for n in lengths]
        self.value = [rng.standard_normal((n, kv_heads, size), np.float32) for n in lengths]

    def run(self, ops, sequences, slopes) -> np.ndarray:
        caches = own_caches(ops, 1, *self.shape[1:], [len(key) for key in self.key])
        earlier = [
            (cache, len(key) - count)
            for cache, key, count in zip(caches, self.key, self.counts, strict=True)
        ]
        self._attend(ops, earlier, 0, sequences, slopes)
        return self._attend(
            ops, list(zip(caches, self.counts, strict=True)), None, sequences, slopes
        )

    def _attend(self, ops, chunks, start, sequences, slopes) -> np.ndarray:
        rows = [
            slice(0, count) if start == 0 else slice(len(key) - count, len(key))
            for (_, count), key in zip(chunks, self.key, strict=True)
        ]
        inputs = [
            np.concatenate([x[:, at] for x, at in zip(self.query, rows, strict=True)], axis=1),
            np.concatenate([x[at] for x, at in zip(self.key, rows, strict=True)]),
            np.concatenate([x[at] for x, at in zip(self.value, rows, strict=True)]),
        ]
        if isinstance(ops, TorchOperations):
            inputs = [torch.from_numpy(x) for x in inputs]
        return np.asarray(ops.cached_attention(chunks, sequences, slopes)(0, *inputs))

    def expected(self, sequences, slopes) -> np.ndarray:
        return np.concatenate(
            [
                attention64(
                    query[:, len(key) - count :], key, value,
                    table(pattern, len(key) - count, count), slopes,
                )
                for query, key, value, count, pattern in zip(
                    self.query, self.key, self.value, self.counts, sequences, strict=True
                )
            ]
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=st.sampled_from([(4, 2, 16), (3, 1, 48), (2, 2, 80)]),
       slopes=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_attention_is_the_definition_for_any_pattern(backend, data, shape, slopes, seed) -> None:
    sizes = data.draw(
        st.lists(st.tuples(st.integers(0, 250), st.sampled_from([1, 1, 2, 70])), max_size=4)
    )
    sequences = [data.draw(patterns()) for _ in sizes]
    rng = np.random.default_rng(seed)
    counts = [count for _, count in sizes]
    ops = open_operations(backend, "cpu", "float32")
    slope = rng.uniform(0.01, 0.5, shape[0]).astype(np.float32) if slopes else None
    if not sizes:
        empty = np.zeros((3, 0, *shape[::2]), np.float32), *np.zeros((2, 0, *shape[1:]), np.float32)
        if backend == "torch":
            empty = [torch.from_numpy(x) for x in empty]
        assert ops.cached_attention([], [], slope)(0, *empty).shape == (0, shape[0] * shape[2])
        return
    step = Step(rng, shape, [before + count for before, count in sizes], counts)
    found = step.run(ops, sequences, slope)
    assert np.allclose(found, step.expected(sequences, slope), atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_sees_only_itself_returns_its_value(backend) -> None:
    ops = open_operations(backend, "cpu", "float32")
    step = Step(np.random.default_rng(0), (2, 2, 16), [130, 65], [130, 1])
    found = step.run(ops, [SlidingWindow(1), PageLists(())], np.ones(2, np.float32))
    values = np.concatenate([step.value[0], step.value[1][-1:]]).reshape(131, -1)
    assert np.allclose(found, values, atol=1e-6)


def test_slopes_fall_alike_for_every_backend_without_patterns() -> None:
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    step = Step(np.random.default_rng(1), (4, 2, 16), [700, 90], [1, 90])
    for backend in ("torch", "numpy", *["native"] * native_built()):
        found = step.run(open_operations(backend, "cpu", "float32"), None, slopes)
        assert np.allclose(found, step.expected([Causal()] * 2, slopes), atol=2e-6)
