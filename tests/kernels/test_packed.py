"""Packed matrices: the bytes as stated, values back, and errors as the design's table has them."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.foundation.errors import UsageError
from fourbee.kernels import torch_ops
from fourbee.kernels.packed import block_bytes, hadamard_128, pack, rel_error, rows, unpack

# A scale as float16 has it is off by at most this part of itself.
HALF = 2.0**-11


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 50), st.integers(1, 3),
    st.sampled_from(["f32", "bf16", "int8", "int4", "int4c"]),
    st.sampled_from([32, 64, 128]), st.booleans(), st.sampled_from(["plain", "search"]),
    st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.float64]),
)  # fmt: skip
def test_every_kind_comes_back(count, units, kind, group, rotated, method, dtype) -> None:
    values = matrix(count, 128 * units).astype(dtype)
    packed = pack(values, kind, group, rotated, method)
    assert packed.shape == values.shape
    assert packed.data.shape[1] == block_bytes(packed.kind, 128 * units, packed.group)
    dense, true = unpack(packed), values.astype(np.float32)
    if rotated:  # what was rounded
        assert_within_rounding(hadamard_128(true), hadamard_128(dense), kind, group, method)
    else:
        assert_within_rounding(true, dense, kind, group, method)
        if kind == "f32":
            assert (dense == values.astype(np.float32)).all()
        ids = np.array([count - 1, 0, count // 2])
        assert (rows(packed, ids) == dense[ids]).all()


def assert_within_rounding(true, found, kind, group, method) -> None:
    """No number is further off than rounding to the nearest step of its group explains.

    The largest of a group is 127 steps (int8) or -8 (int4), so that int4 cuts what lies beyond 7;
    a searched scale leaves no group a larger squared error than that one. Steps of int4c are up to
    half a code off, a code being a 255th of the row's largest, and zero points a 32nd of a step.
    """
    true, found = (x.astype(np.float64).reshape(len(x), -1, group) for x in (true, found))
    off, noise = np.abs(found - true), 1e-5  # of float32, rotating there and back
    largest = np.abs(true).max(axis=2, keepdims=True)
    if kind == "f32":
        assert (off <= noise).all()
    elif kind == "bf16":  # 8 bits
        assert (off <= np.abs(true) * 2.0**-8 + noise).all()
    elif kind == "int8":
        assert (off <= largest / 127 * (1 / 2 + 127 * HALF) + noise).all()
    elif kind == "int4c" and method == "plain":
        step, code = compact_steps(true)
        assert (off <= step * (1 / 2 + 1 / 32) + code * 8 + noise).all()
    elif method == "plain":
        extreme = np.take_along_axis(true, np.abs(true).argmax(axis=2)[..., None], axis=2)
        step = extreme / -8
        beyond = np.maximum(true / step - 7, 1 / 2)
        assert (off <= np.abs(step) * (beyond + 8 * HALF) + noise).all()
    else:
        plain = unpack(pack(true.reshape(len(true), -1), kind, group, method="plain"))
        plain_off = np.linalg.norm(plain.reshape(true.shape) - true, axis=2)
        allowed = plain_off + 2 * HALF * np.linalg.norm(true, axis=2) + noise * group
        if kind == "int4c":
            allowed += 16 * math.sqrt(group) * compact_steps(true)[1][..., 0]
        assert (np.linalg.norm(off, axis=2) <= allowed).all()


def compact_steps(true) -> tuple[np.ndarray, np.ndarray]:
    """Steps between least and greatest of groups, zero among them, and what a code is."""
    step = (true.max(axis=2).clip(0) - true.min(axis=2).clip(None, 0))[..., None] / 15
    return step, step.max(axis=1, keepdims=True) / 255


def test_the_bytes_are_those_of_the_description() -> None:
    values = matrix(19, 64)
    scales = np.abs(values.reshape(19, 2, 32)).max(axis=2) / np.float32(127)
    for kind in ("f32", "bf16", "int8", "int4", "int4c"):
        packed = pack(values, kind, 32, method="plain")
        dense, block = unpack(packed), packed.data[1]
        n = 2  # of block 1: row 18
        if kind == "f32":
            assert block.view(np.float32)[16 * 5 + n] == values[18, 5]
        elif kind == "bf16":
            pair = block.view(ml_dtypes.bfloat16)[32 * 3 + 2 * n :][:2]
            assert (pair == values[18, 6:8].astype(ml_dtypes.bfloat16)).all()
        elif kind == "int4c":
            second = block[32 * 8 + 32 :]
            scale, zero = second[32 * 8 + n], second[32 * 8 + 16 + n]
            step = scale * block[-64:].view(np.float32)[n]
            line = second[64 * 2 + 4 * n :][:4]
            q = np.concatenate([line & 15, line >> 4]) - np.float32(zero) / 16
            assert (q * step == dense[18, 32 + 16 : 32 + 24]).all()
            first = block[32 * 8 + n]
            assert max(scale, first) == 255 and min(scale, first) > 0
        else:
            size = 32 * 16 if kind == "int8" else 32 * 8
            second = block[size + 32 :]  # the group of columns 32 to 63
            scale = second[size:].view(np.float16)[n].astype(np.float32)
            if kind == "int8":
                assert scale == scales[18, 1].astype(np.float16)
                q = second[64 * 3 + 4 * n :][:4].astype(np.float32) - 128
                assert (q * scale == dense[18, 32 + 12 : 32 + 16]).all()
            else:
                line = second[64 * 2 + 4 * n :][:4]
                q = np.concatenate([line & 15, line >> 4]).astype(np.float32) - 8
                assert (q * scale == dense[18, 32 + 16 : 32 + 24]).all()


def test_hadamard_is_that_of_torch_and_its_own_inverse() -> None:
    x = matrix(5, 384)
    np.testing.assert_allclose(
        hadamard_128(x), torch_ops.hadamard_128(torch.from_numpy(x)).numpy(), atol=2e-6
    )
    np.testing.assert_allclose(hadamard_128(hadamard_128(x)), x, atol=2e-6)


def test_zeros_and_what_is_too_small_for_float16_become_zero() -> None:
    for kind, small in (("int8", 1e-12), ("int4", 1e-12), ("int4c", 1e-30)):
        for value in (0, small):
            assert not unpack(pack(np.full((3, 64), value, np.float32), kind)).any()
    packed = pack(np.zeros((3, 64), np.float32), "int4c")
    assert not packed.data.any()


def test_errors_are_those_of_the_design() -> None:
    random = np.random.default_rng(1)
    gaussian = random.normal(size=(256, 1024)).astype(np.float32)
    heavy = random.standard_t(4, size=gaussian.shape).astype(np.float32)
    outliers = heavy.copy()
    outliers[:, random.choice(1024, 8, replace=False)] *= 10
    for values, compact, bound, plain_at_least in (
        (gaussian, 0.083, 0.091, 0.093),
        (heavy, 0.082, 0.090, 0.13),
        (outliers, 0.077, 0.085, 0.16),
    ):
        # Q4_0 has 0.0859 of Gaussian weights, in more bits.
        assert rel_error(values, pack(values, "int4c", 64, rotated=True)) < compact
        best = rel_error(values, pack(values, "int4", 64, rotated=True))
        searched = rel_error(values, pack(values, "int4", 64))
        plain = rel_error(values, pack(values, "int4", 64, method="plain"))
        assert best < bound
        assert plain > plain_at_least and plain > searched > best - 0.001


@pytest.mark.parametrize(
    ("columns", "kind", "group", "rotated", "expected"),
    [
        (96, "int4", 64, False, "96 columns, groups of 64: expected a multiple of 64"),
        (64, "int8", 48, False, "group 48: expected one of 32, 64, 128"),
        (64, "int4", 64, True, "64 columns, rotated: expected a multiple of 128"),
        (3, "bf16", 64, False, "3 columns, bf16: expected a multiple of 2"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, kind, group, rotated, expected) -> None:
    with pytest.raises(UsageError, match=expected):
        pack(matrix(2, columns), kind, group, rotated)


def test_values_that_cannot_be_packed_are_refused() -> None:
    for value, words in ((np.nan, "NaN or infinity"), (1e9, "too large")):
        with pytest.raises(UsageError, match=words):
            pack(np.full((2, 64), value, np.float32), "int8")
    for value, words in ((np.inf, "NaN or infinity"), (3e38, "too large")):
        with pytest.raises(UsageError, match=words):
            pack(np.tile(np.float32([value, -value]), (2, 32)), "int4c")
