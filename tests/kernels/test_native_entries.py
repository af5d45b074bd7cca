"""Whatever sizes the native entries are given, they refuse them or stay within their arrays.

Refusals are asserted here; that nothing else is touched shows in a build with sanitizers.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.kernels.packed import block_bytes

native = pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")

REFUSALS = (ValueError, TypeError, MemoryError)
KINDS = ("f32", "bf16", "int8", "int4", "int4a", "int4c")
SIZES = st.sampled_from([-(2**63), -1, 0, 1, 2, 15, 16, 17, 32, 64, 128, 2**30, 2**31, 2**62])
FEW = st.integers(0, 3)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*KINDS, "f16"]), SIZES, SIZES, SIZES, st.booleans(), FEW, SIZES)
def test_a_packed_matrix_has_exactly_its_bytes(kind, rows, columns, group, rotated, blocks, size):
    data = np.zeros((blocks, size if 0 <= size <= 128 else 64 * 16), dtype=np.uint8)
    try:
        native.PackedWeights(kind, rows, columns, group, rotated, data)
    except REFUSALS:
        return
    assert data.shape == (-(-rows // 16), block_bytes(kind, columns, group))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 40), st.sampled_from([32, 64, 128]),
    st.lists(st.integers(-1, 1), min_size=5, max_size=5), st.integers(0, 9), SIZES,
)  # fmt: skip
def test_products_take_what_fits_the_matrix_and_nothing_else(kind, n, group, off, count, row):
    columns, group = 128, group if kind.startswith("int") else 0
    data = np.zeros((-(-n // 16), block_bytes(kind, columns, group)), dtype=np.uint8)
    weights = native.PackedWeights(kind, n, columns, group, False, data)
    x, norm = floats(count, columns + off[0]), floats(columns + off[1])
    out = floats(max(0, count + off[2]), n + off[3])
    fits = x.shape[1] == columns and out.shape == (count, n)
    for call, right in (
        (lambda: native.linear(weights, x, out, False), fits),
        (lambda: native.norm_linear(x, norm, 1e-6, [weights], [out]), fits and not off[1]),
        (lambda: native.unpack_rows(weights, np.array([row]), floats(1, columns)), 0 <= row < n),
    ):
        try:
            call()
        except REFUSALS:
            assert not right
        else:
            assert right


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["f32", "bf16", "int8"]), st.integers(1, 3), st.lists(FEW, max_size=3),
    st.lists(st.sampled_from([0, 1, 63, 64, 65, 2**40, 2**62, -1]), max_size=3),
    st.lists(st.integers(-1, 4), max_size=4), st.lists(st.integers(-1, 3), max_size=4), SIZES,
)  # fmt: skip
def test_attention_stays_within_its_pages(kind, heads, counts, starts, offsets, pages, layer):
    pool = native.KvPool(1, heads, 16, kind, 3)
    rows = sum(counts)
    query, out, key = floats(rows, heads, 16), floats(rows, heads, 16), floats(rows, heads, 16)
    numbers = [np.array(x, dtype=np.int64) for x in (counts, starts, offsets, pages)]
    try:
        native.attend(pool, layer, query, key, key, *numbers, out)
    except REFUSALS:
        return
    assert layer == 0 and len(starts) == len(counts) == len(offsets) - 1
    assert all(0 <= page < 3 for page in pages)
    spans = zip(counts, starts, offsets, offsets[1:], strict=True)
    assert all((end - begin) * 64 >= start + count for count, start, begin, end in spans)


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from(["f32", "int8", "int4", ""]), SIZES)
def test_pages_of_impossible_sizes_are_refused(layers, heads, head_dim, kind, page):
    try:
        pool = native.KvPool(layers, heads, head_dim, kind, 1)
    except REFUSALS:
        return
    assert (
        min(layers, heads) > 0
        and head_dim > 0
        and head_dim % 16 == 0
        and kind in ("f32", "int8", "int4")
    )
    for call in (lambda: pool.clear(page or 1), lambda: pool.copy(page or 1, 0)):
        with pytest.raises(REFUSALS):
            call()
