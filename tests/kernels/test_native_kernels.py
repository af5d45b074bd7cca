"""The native kernels against NumPy in float64, over odd shapes; rows do not know each other.

`test_native_variants.py` runs this file again for every instruction set of the machine.
"""

import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.kernels.packed import PackedMatrix, block_bytes, pack, pack_affine, unpack

native = pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
native_ops = pytest.importorskip("fourbee.kernels.native_ops")

KINDS = [
    ("f32", 0, False),
    ("bf16", 0, False),
    ("int8", 32, False),
    ("int8", 128, True),
    ("int4", 32, False),
    ("int4", 64, True),
    ("int4", 128, True),
    ("int4a", 32, False),
    ("int4a", 64, False),
    ("int4a", 128, False),
    ("int4c", 32, False),
    ("int4c", 64, True),
    ("int4c", 128, True),
]
# Inputs are rounded to the kind's activations: bfloat16, or 8 bits a group.
TOLERANCES = {"f32": 1e-6, "bf16": 4e-3, "int8": 1e-2, "int4": 1e-2, "int4a": 1e-2, "int4c": 1e-2}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def two_threads():
    native.set_threads(2)


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def packed_weights(matrix, kind, group, rotated):
    """The kernels' matrix, and what its bytes stand for in float64."""
    packed = (
        affine(matrix, group)
        if kind == "int4a"
        else pack(matrix, kind, group=group or 64, rotated=rotated)
    )
    weights = native.PackedWeights(
        packed.kind, packed.rows, packed.columns, packed.group, packed.rotated, packed.data
    )
    return weights, unpack(packed).astype(np.float64)


def affine(matrix, group) -> PackedMatrix:
    """Between the least and the greatest of each group, in fifteen steps."""
    values = matrix.reshape(len(matrix), -1, group)
    low, high = values.min(axis=2).astype(np.float16), values.max(axis=2)
    scale = ((high - low) / 15).astype(np.float16)
    q = np.clip(np.rint((values - low[..., None]) / scale[..., None]), 0, 15).astype(np.uint8)
    return pack_affine(q.reshape(matrix.shape), scale, low)


def product(weights, x, rows, add_to=None) -> np.ndarray:
    out = np.empty((len(x), rows), np.float32) if add_to is None else add_to.copy()
    native.linear(weights, x, out, add_to is not None)
    return out


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def same_bits(a, b) -> bool:
    return a.tobytes() == b.tobytes()


def test_the_variant_that_was_asked_for_is_in_use() -> None:
    assert native.isa() == os.environ.get("FOURBEE_ISA", native.isas()[-1])
    assert "portable" in native.isas()


@pytest.mark.parametrize(("kind", "group", "rotated"), KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (37, 384), (1, 256), (176, 1280)])
def test_linear_is_the_product_with_the_unpacked_matrix(
    rng, kind, group, rotated, rows, columns
) -> None:
    weights, dense = packed_weights(numbers(rng, rows, columns), kind, group, rotated)
    for count in (1, 2, 3, 4, 5, 6, 7, 13, 200):
        x, residual = numbers(rng, count, columns), numbers(rng, count, rows)
        expected = x.astype(np.float64) @ dense.T
        assert relative_error(product(weights, x, rows), expected) < TOLERANCES[kind] * 3
        added = product(weights, x, rows, residual)
        assert np.allclose(added, residual + product(weights, x, rows), atol=1e-5)


@pytest.mark.parametrize(("kind", "group", "rotated"), KINDS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(
    rng, kind, group, rotated
) -> None:
    weights, _ = packed_weights(numbers(rng, 100, 512), kind, group, rotated)
    x = numbers(rng, 211, 512)
    alone = np.concatenate([product(weights, x[i : i + 1], 100) for i in range(len(x))])
    for threads in (1, 2, 3):
        native.set_threads(threads)
        for count in (2, 3, 4, 5, 6, 11, 211):
            assert same_bits(product(weights, x[:count], 100), alone[:count])


def test_an_empty_batch_is_nothing(rng) -> None:
    weights, _ = packed_weights(numbers(rng, 16, 64), "f32", 0, False)
    assert product(weights, np.empty((0, 64), np.float32), 16).shape == (0, 16)


@pytest.mark.parametrize(("kind", "group", "rotated"), KINDS)
def test_rows_are_unpacked_exactly(rng, kind, group, rotated) -> None:
    weights, dense = packed_weights(numbers(rng, 50, 256), kind, group, rotated)
    ids = np.array([49, 0, 17, 17])
    out = np.empty((4, 256), np.float32)
    native.unpack_rows(weights, ids, out)
    assert np.allclose(out, dense[ids], atol=1e-6 if rotated else 0, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 12), st.sampled_from([32, 64, 128]),
       st.integers(0, 9), st.integers(0, 2**32 - 1))  # fmt: skip
def test_affine_int4_of_any_shape_is_the_definition(rows, groups, group, count, seed) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 16, (rows, groups * group), dtype=np.uint8)
    scale, minimum = rng.standard_normal((2, rows, groups)).astype(np.float16)
    scale[rng.random(scale.shape) < 0.1] = 0  # a group of its minimum alone
    exact = q.reshape(rows, groups, group) * scale.astype(np.float64)[..., None]
    exact = (exact + minimum.astype(np.float64)[..., None]).reshape(q.shape)
    packed = pack_affine(q, scale, minimum)
    assert np.array_equal(unpack(packed), exact.astype(np.float32))
    weights = native.PackedWeights("int4a", rows, q.shape[1], group, False, packed.data)
    out = np.empty(q.shape, np.float32)
    native.unpack_rows(weights, np.arange(rows), out)
    assert np.array_equal(out, exact.astype(np.float32))
    # Whole numbers with 127 in every group are not rounded: the product is exact but for sums.
    x = rng.integers(-126, 127, (count, groups, group)).astype(np.float32)
    x[:, :, :1] = 127
    x = x.reshape(count, groups * group)
    expected, sums = x @ exact.T, np.abs(x) @ np.abs(exact).T
    found = product(weights, x, rows)
    assert found.shape == (count, rows)
    assert (np.abs(found - expected) <= 4e-6 * (sums + 1)).all()
    for i in range(count):
        assert same_bits(found[i], product(weights, x[i : i + 1], rows)[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 12), st.sampled_from([32, 64, 128]),
       st.integers(0, 9), st.integers(0, 2**32 - 1))  # fmt: skip
def test_compact_int4_of_any_bytes_is_the_definition(rows, groups, group, count, seed) -> None:
    rng = np.random.default_rng(seed)
    columns, blocks, lines = groups * group, -(-rows // 16), group * 8
    data = rng.integers(0, 256, (blocks, block_bytes("int4c", columns, group)), dtype=np.uint8)
    bases = rng.standard_normal((blocks, 16)).astype(np.float32)
    data[:, -64:] = bases.view(np.uint8)
    # Columns of a line: four low halves of the bytes of a row, then the high ones.
    parts = data[:, :-64].reshape(blocks, groups, lines + 32)
    bytes_ = parts[..., :lines].reshape(blocks, groups, -1, 16, 4)
    q = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1).transpose(0, 3, 1, 2, 4)
    scale, zero = (
        parts[..., at : at + 16].transpose(0, 2, 1)[..., None].astype(np.float64)
        for at in (lines, lines + 16)
    )
    exact = bases[..., None, None].astype(np.float64) * scale
    exact = exact * (q.reshape(blocks, 16, groups, group) - zero / 16)
    exact = exact.reshape(-1, columns)[:rows]
    packed = PackedMatrix("int4c", rows, columns, group, False, data)
    np.testing.assert_allclose(unpack(packed), exact, rtol=2e-7)
    weights = native.PackedWeights("int4c", rows, columns, group, False, data)
    out = np.empty((rows, columns), np.float32)
    native.unpack_rows(weights, np.arange(rows), out)
    assert same_bits(out, unpack(packed))
    # Whole numbers with 127 in every group are not rounded: the product is exact but for sums.
    x = rng.integers(-126, 127, (count, groups, group)).astype(np.float32)
    x[:, :, :1] = 127
    x = x.reshape(count, columns)
    added = np.abs(scale * zero / 16 * bases[..., None, None]).repeat(group, axis=3)
    spread = np.abs(exact) + added.reshape(-1, columns)[:rows]
    expected, sums = x @ exact.T, np.abs(x) @ spread.T
    found = product(weights, x, rows)
    assert (np.abs(found - expected) <= 4e-6 * (sums + 1)).all()
    for i in range(count):
        assert same_bits(found[i], product(weights, x[i : i + 1], rows)[0])


@pytest.mark.parametrize("method", ["plain", "search"])
@pytest.mark.parametrize(
    ("kind", "group", "rotated"), [kind for kind in KINDS if kind[0] != "int4a"]
)
def test_packing_gives_the_references_bytes(rng, kind, group, rotated, method) -> None:
    heavy = rng.standard_t(3, (37, 384)).astype(np.float32)
    uniform = rng.uniform(-1, 1, (1500, 256)).astype(ml_dtypes.bfloat16)
    # Of both signs alike, all zeros, and numbers at the ends of what a float16 scale holds.
    odd = np.zeros((16, 256), np.float32)
    odd[0, ::3], odd[0, 1::3] = 2.0, -2.0
    odd[1:4] = numbers(rng, 3, 256) * 1e-7
    odd[4:7] = numbers(rng, 3, 256) * 2e4
    # Of one sign, of one value, one number among zeros; and so small that it becomes zero.
    odd[7:9] = np.abs(numbers(rng, 2, 256)) + np.float32([[3], [0]])
    odd[9], odd[10], odd[11, 100] = 5.0, -5.0, 1.0
    odd[12] = numbers(rng, 256) * 1e-32
    for matrix in (heavy, uniform, odd):
        made = native_ops.pack_natively(matrix, kind, group or 64, rotated, method)
        assert same_bits(made.data, pack(matrix, kind, group or 64, rotated, method).data)


def test_rotation_spreads_outliers(rng) -> None:
    matrix = rng.standard_t(4, (64, 512)).astype(np.float32)
    matrix[:, ::97] *= 8
    errors = []
    for rotated in (False, True):
        data = np.empty((4, block_bytes("int4", 512, 64)), np.uint8)
        native.pack("int4", 64, rotated, True, matrix, data)
        dense = unpack(PackedMatrix("int4", 64, 512, 64, rotated, data))
        errors.append(relative_error(dense, matrix))
    assert errors[1] < 0.1 < errors[0]


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e5])
def test_extreme_matrices_are_packed_without_harm(value) -> None:
    for kind in ("int8", "int4", "int4c"):
        data = np.empty((1, block_bytes(kind, 64, 64)), np.uint8)
        native.pack(kind, 64, False, True, np.full((16, 64), value, np.float32), data)
        dense = unpack(PackedMatrix(kind, 16, 64, 64, False, data))
        assert np.allclose(dense, 0 if value == 1e-30 else value, rtol=1e-2)


def norm64(x, weight, eps=1e-6) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def test_norm_linear_norms_once_for_matrices_of_any_kind(rng) -> None:
    x, norm = numbers(rng, 9, 256) * 3, numbers(rng, 256)
    kinds = [
        ("f32", 0, False),
        ("int8", 64, False),
        ("int8", 64, False),
        ("int4", 64, True),
        ("int4a", 64, False),
        ("int4c", 64, True),
    ]
    made = [packed_weights(numbers(rng, 48, 256), *kind) for kind in kinds]
    outs = [np.empty((9, 48), np.float32) for _ in made]
    native.norm_linear(x, norm, 1e-6, [weights for weights, _ in made], outs)
    for (_, dense), out, (kind, *_) in zip(made, outs, kinds, strict=True):
        assert relative_error(out, norm64(x, norm) @ dense.T) < TOLERANCES[kind] * 3


@pytest.mark.parametrize("count", [1, 5, 40])
def test_gated_mlp_is_swiglu_with_norm_and_residual(rng, count) -> None:
    x, norm = numbers(rng, count, 128), numbers(rng, 128)
    (gate, gate64), (up, up64) = (
        packed_weights(numbers(rng, 304, 128), "f32", 0, False) for _ in range(2)
    )
    down, down64 = packed_weights(numbers(rng, 128, 304) / 16, "f32", 0, False)
    normed = norm64(x, norm)
    g = normed @ gate64.T
    expected = x + (g / (1 + np.exp(-g)) * (normed @ up64.T)) @ down64.T
    native.gated_mlp(x, norm, 1e-6, gate, up, down)
    assert relative_error(x, expected) < 2e-6


def test_heads_are_normed_and_rotated(rng) -> None:
    x, norm = numbers(rng, 21, 3, 48), numbers(rng, 48)
    angles = rng.uniform(0, 7, (21, 24))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    out = np.empty_like(x)
    native.rotate_heads(x, norm, 1e-6, cos, sin, out)
    first, second = np.split(norm64(x, norm), 2, axis=-1)
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    expected = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
    assert np.allclose(out, expected, atol=1e-5)


class Sequences:
    """Random sequences of several lengths and the pages that they are written to."""

    def __init__(self, rng, kind, heads, kv_heads, size, lengths) -> None:
        ends = np.cumsum([-(-n // 64) for n in lengths]).tolist()
        self.pool = native.KvPool(2, kv_heads, size, kind, ends[-1])
        self.lengths = lengths
        self.rows = [
            (numbers(rng, n, heads, size), numbers(rng, n, kv_heads, size),
             numbers(rng, n, kv_heads, size))
            for n in lengths
        ]  # fmt: skip
        self.pages = [[*range(*two)] for two in zip([0, *ends], ends, strict=False)]

    def attend(self, *chunks) -> np.ndarray:
        """One call over chunks of (sequence, start, count)."""
        query, key, value = (
            np.concatenate([self.rows[s][i][start : start + count] for s, start, count in chunks])
            for i in range(3)
        )
        out = np.full_like(query, np.nan)
        pages = [self.pages[s] for s, _, _ in chunks]
        native.attend(
            self.pool, 1, query, key, value,
            np.array([count for *_, count in chunks]),
            np.array([start for _, start, _ in chunks]),
            np.cumsum([0, *map(len, pages)]), np.concatenate(pages), out,
        )  # fmt: skip
        return out

    def expected(self) -> np.ndarray:
        return np.concatenate([attention64(*rows) for rows in self.rows])


def attention64(query, key, value) -> np.ndarray:
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat(share, axis=1), value.repeat(share, axis=1)
    scores = np.einsum("thk,shk->hts", query, key) / np.sqrt(query.shape[2])
    scores[:, *np.triu_indices(len(query), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("kind", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 128), (3, 1, 16), (4, 4, 80)])
def test_attention_of_a_mixed_batch_and_its_bits(rng, kind, heads, kv_heads, size) -> None:
    lengths = [1100, 70, 513, 3]
    several = Sequences(rng, kind, heads, kv_heads, size, lengths)
    whole = several.attend(*((s, 0, n) for s, n in enumerate(lengths)))
    tolerance = {"f32": 1e-6, "bf16": 5e-3, "int8": 2e-2, "int4": 0.15}[kind]
    assert relative_error(whole, several.expected()) < tolerance
    # The same rows in chunks, decoded one by one and beside others: the same bits.
    native.set_threads(1)
    a = several.attend((0, 0, 700), (1, 0, 1))
    native.set_threads(3)
    b = several.attend((1, 1, 69), (0, 700, 399), (2, 0, 512), (3, 0, 2))
    c = several.attend((3, 2, 1), (0, 1099, 1), (2, 512, 1))
    parts = [
        a[:700], b[69:468], c[1:2],
        a[700:], b[:69],
        b[468:980], c[2:],
        b[980:], c[:1],
    ]  # fmt: skip
    assert same_bits(np.concatenate(parts), whole)


def test_not_a_number_is_not_hidden(rng) -> None:
    for kind in KINDS:
        weights, _ = packed_weights(numbers(rng, 16, 128), *kind)
        x = numbers(rng, 2, 128)
        x[1, 3] = np.nan
        out = product(weights, x, 16)
        assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


def test_pages_are_seen_copied_and_cleared(rng) -> None:
    pool = native.KvPool(2, 1, 16, "f32", 3)
    assert (pool.pages, pool.layers, pool.page_bytes) == (3, 2, 2 * 2 * 64 * 16 * 4)
    zeros, data = bytes(pool.page_bytes), rng.bytes(pool.page_bytes)
    assert pool.view(2).tobytes() == zeros
    pool.view(1)[:] = np.frombuffer(data, np.uint8)
    pool.copy(1, 2)
    assert [pool.view(page).tobytes() for page in range(3)] == [zeros, data, data]
    pool.clear(1)
    assert [pool.view(page).tobytes() for page in (1, 2)] == [zeros, data]
    for call in (lambda: pool.view(3), lambda: pool.clear(-1), lambda: pool.copy(-1, 0)):
        with pytest.raises(ValueError, match=r"page (3|-1): the pool has 3"):
            call()
    view = pool.view(2)
    pool = None
    assert view.tobytes() == data  # it holds the pool
    with pytest.raises(MemoryError):
        native.KvPool(2, 1, 16, "f32", 1 << 60)


def test_wrong_shapes_and_numbers_are_refused(rng) -> None:
    packed = pack(numbers(rng, 16, 64), "f32")
    with pytest.raises(ValueError, match="bytes of a block = 4096: expected 8192"):
        native.PackedWeights("f32", 16, 128, 0, False, packed.data)
    with pytest.raises(ValueError, match="kind = 'f8'"):
        native.PackedWeights("f8", 16, 64, 0, False, packed.data)
    with pytest.raises(ValueError, match="kind = 'int4a'"):
        native.pack("int4a", 64, False, True, numbers(rng, 16, 64), packed.data)
    with pytest.raises(ValueError, match="bytes of a block = 4096: expected 640"):
        native.PackedWeights("int4a", 16, 64, 32, False, packed.data)
    with pytest.raises(ValueError, match="bytes of a block = 4096: expected 640"):
        native.PackedWeights("int4c", 16, 64, 32, False, packed.data)
    weights = native.PackedWeights("f32", 16, 64, 0, False, packed.data)
    with pytest.raises(ValueError, match="columns of x = 32: expected 64"):
        native.linear(weights, numbers(rng, 1, 32), np.empty((1, 16), np.float32), False)
    with pytest.raises(ValueError, match="rows of out = 2: expected 1"):
        native.linear(weights, numbers(rng, 1, 64), np.empty((2, 16), np.float32), False)
    with pytest.raises(ValueError, match="row 16: the matrix has 16"):
        native.unpack_rows(weights, np.array([16]), np.empty((1, 64), np.float32))
    with pytest.raises(ValueError, match="head_dim: expected a multiple of 16"):
        native.KvPool(1, 1, 8, "f32", 1)
    with pytest.raises(ValueError, match="kind = 'int4a': expected one of f32, bf16, int8, int4"):
        native.KvPool(1, 1, 16, "int4a", 1)
    with pytest.raises(ValueError, match="threads = 0"):
        native.set_threads(0)


def test_attention_refuses_pages_and_counts_that_do_not_fit(rng) -> None:
    pool = native.KvPool(1, 1, 16, "f32", 1)
    page = 0
    rows = numbers(rng, 2, 1, 16)

    def attend(layer=0, counts=(2,), starts=(0,), offsets=(0, 1), pages=(page,)) -> None:
        integers = (np.array(x, dtype=np.int64) for x in (counts, starts, offsets, pages))
        native.attend(pool, layer, rows, rows, rows, *integers, np.empty_like(rows))

    attend()
    for wrong in (
        {"layer": 1}, {"counts": (3,)}, {"counts": (1,)}, {"counts": (-1,)}, {"starts": (63,)},
        {"starts": (-1,)}, {"offsets": (0, 2)}, {"offsets": (1, 0)}, {"pages": (page + 1,)},
        {"starts": (0, 0)},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            attend(**wrong)
