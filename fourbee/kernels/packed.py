"""PackedMatrix: a weight matrix as the native kernels read it, and the layout of its bytes.

Output rows lie in blocks of 16 (the last one filled up with zeros), each block one sequential
stream of lines of 64 bytes. What a line holds depends on the kind, n being a row of the block:

    f32    one column:    16 float32            W[n][d]
    bf16   two columns:   16 x 2 bfloat16       W[n][2d], W[n][2d+1]
    int8   four columns:  16 x 4 uint8          q[n][4d] .. q[n][4d+3], 128 added
    int4   eight columns: 16 x 4 bytes, the low half q[n][8d+i], the high half q[n][8d+4+i], 8 added
    int4a  as int4, with nothing added

int8 and int4 are symmetric, `W = scale * q`: after the lines of each group of columns come its 16
float16 scales (32 bytes), one a row. int8 q is from -128 to 127, int4 q from -8 to 7.
int4a is affine, `W = scale * q + minimum`, q from 0 to 15: after the scales come 16 float16
minimums. A minimum and not a zero point, as that holds GGUF's Q4_1 exactly, Q4_K but for the
rounding of two products, and groups whose scale is 0; of AWQ and GPTQ, whose zero points are whole,
`-zero * scale` is rounded to 11 bits, by at most 1/128 of a step (16 times 2^-11).
`rotated` says that the rows of W were multiplied by the Hadamard-128 matrix: so must inputs be.

Packing and unpacking in NumPy: the reference that native code is tested against, byte for byte, and
not its like in speed (`backends.pack_fast` takes the faster). Files of packed matrices are
`model/packed_format.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import FloatArray

Kind = Literal["f32", "bf16", "int8", "int4", "int4a"]
Method = Literal["plain", "search"]
Words = npt.NDArray[np.uint32]
# Of the arithmetic below: raised whenever some matrix gets other bytes than before.
PACKER = 2
BLOCK_ROWS = 16
GROUPS = (32, 64, 128)
_BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4, "int4a": 4}
# What is added to q, so that it is stored without a sign.
_ADDED = {"int8": 128, "int4": 8, "int4a": 0}
_FLOATS = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
_VALUES_AT_ONCE = 1 << 18
NOT_FINITE = "a matrix with NaN or infinity cannot be packed"
TOO_LARGE = "a matrix with weights too large for float16 scales cannot be packed"
# What the value furthest from zero becomes in the scales that are tried: from finer steps with that
# value cut to coarser ones, and of both signs, as -8 has no opposite.
_CANDIDATES = (-9.5, -9.0, -8.5, -8.0, -7.5, -7.0, -6.5, -6.0, 8.5, 8.0, 7.5, 7.0, 6.5, 6.0)


@dataclass(frozen=True)
class PackedMatrix:
    """W `[rows, columns]` in the layout above; `data` is `[blocks, block_bytes]`, contiguous."""

    kind: Kind
    rows: int
    columns: int
    group: int  # columns that share a scale; 0 for f32 and bf16
    rotated: bool
    data: npt.NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns


def block_bytes(kind: Kind, columns: int, group: int) -> int:
    """Bytes of 16 rows: the lines and, where there are groups, their scales and minimums."""
    scales = columns // group * BLOCK_ROWS * _scale_bytes(kind) if group else 0
    return columns * BLOCK_ROWS * _BITS[kind] // 8 + scales


def pack(
    matrix: npt.NDArray[Any],
    kind: Kind,
    group: int = 64,
    rotated: bool = False,
    method: Method = "search",
) -> PackedMatrix:
    """A matrix `[N, D]` of any float type, packed; UsageError where its columns do not fit.

    The group counts for int8 and int4 only, the method for int4 only. Not for int4a, which holds
    the numbers of other formats (`pack_affine`).
    """
    assert kind != "int4a", "packed from numbers, not from a matrix"
    rows, columns = matrix.shape
    group = group if _BITS[kind] < 16 else 0
    check_columns(columns, kind, group, rotated)
    blocks = -(-rows // BLOCK_ROWS)
    data = np.empty((blocks, block_bytes(kind, columns, group)), dtype=np.uint8)
    step = rows_at_once(columns)
    for start in range(0, rows, step):
        part = matrix[start : start + step].astype(np.float32)
        if not np.isfinite(part).all():
            raise UsageError(NOT_FINITE)
        part = hadamard_128(part) if rotated else part
        part = np.pad(part, ((0, -len(part) % BLOCK_ROWS), (0, 0)))
        first = start // BLOCK_ROWS
        target = data[first : first + len(part) // BLOCK_ROWS]
        if group:
            _write_quantised(part.reshape(len(part), -1, group), kind, method, target)
        else:
            _lines(kind, 0, target)[:] = _interleaved(part.astype(_FLOATS[kind]).view(np.uint32))
    return PackedMatrix(kind, rows, columns, group, rotated, data)


def pack_affine(
    q_ND: npt.NDArray[Any], scale_NG: npt.NDArray[Any], minimum_NG: npt.NDArray[Any]
) -> PackedMatrix:
    """`W = scale * q + minimum` as int4a; exact where float16 holds scales and minimums."""
    return pack_numbers("int4a", q_ND, scale_NG, minimum_NG)


def pack_numbers(
    kind: Kind,
    q_ND: npt.NDArray[Any],
    scale_NG: npt.NDArray[Any],
    minimum_NG: npt.NDArray[Any] | None = None,
) -> PackedMatrix:
    """A matrix of whole numbers that are known already, as other formats have them.

    UsageError for columns that do not fit, and for a scale or a minimum too large for float16.
    """
    rows, columns = q_ND.shape
    group = columns // scale_NG.shape[1]
    check_columns(columns, kind, group, False)
    filling = ((0, -rows % BLOCK_ROWS), (0, 0))
    blocks = (rows + filling[0][1]) // BLOCK_ROWS
    data = np.empty((blocks, block_bytes(kind, columns, group)), dtype=np.uint8)
    stored = (np.pad(q_ND, filling).astype(np.int16) + _ADDED[kind]).astype(np.uint8)
    _write_lines(stored.reshape(len(stored), -1, group), kind, data)
    given = [scale_NG] if minimum_NG is None else [scale_NG, minimum_NG]
    for tail, values in zip(_tails(kind, group, data), given, strict=True):
        halves = _stored(np.pad(values.astype(np.float32), filling))
        tail[:] = halves.reshape(blocks, BLOCK_ROWS, -1).transpose(0, 2, 1)
    return PackedMatrix(kind, rows, columns, group, False, data)


def stacked(rows: int, parts: Iterable[PackedMatrix]) -> PackedMatrix:
    """Parts of a matrix of so many rows, all alike and each but the last of whole blocks."""
    data, first = np.empty((0, 0), dtype=np.uint8), 0
    for part in parts:
        if not first:
            data = np.empty((-(-rows // BLOCK_ROWS), part.data.shape[1]), dtype=np.uint8)
        data[first : first + len(part.data)] = part.data
        first += len(part.data)
    return replace(part, rows=rows, data=data)


def unpack(packed: PackedMatrix) -> FloatArray:
    """The float32 matrix `[N, D]`, with the rotation undone."""
    dense = np.empty(packed.shape, dtype=np.float32)
    step = rows_at_once(packed.columns)
    for start in range(0, packed.rows, step):
        end = min(start + step, packed.rows)
        dense[start:end] = rows(packed, np.arange(start, end))
    return dense


def rows(packed: PackedMatrix, ids: npt.NDArray[np.integer[Any]]) -> FloatArray:
    """Rows `[len(ids), D]` of the unpacked matrix; only their own bytes are read."""
    blocks, row = ids // BLOCK_ROWS, ids % BLOCK_ROWS
    words = np.ascontiguousarray(_lines(packed.kind, packed.group, packed.data)[blocks, ..., row])
    if packed.group:
        values_RGD = _numbers(words.reshape(*words.shape[:2], -1), packed.kind)
        tails = _tails(packed.kind, packed.group, packed.data)
        scales, *minimums = (tail[blocks, :, row].astype(np.float32)[..., None] for tail in tails)
        values_RGD *= scales
        if minimums:
            values_RGD += minimums[0]
        values = values_RGD.reshape(len(ids), packed.columns)
    else:
        values = words.reshape(len(ids), -1).view(_FLOATS[packed.kind]).astype(np.float32)
    return hadamard_128(values) if packed.rotated else values


RowsOf = Callable[[PackedMatrix, npt.NDArray[np.integer[Any]]], FloatArray]


def rel_error(matrix: npt.NDArray[Any], packed: PackedMatrix, rows: RowsOf = rows) -> float:
    """How far the packed matrix is from the matrix: `|W' - W| / |W|`, 0 for a matrix of zeros."""
    wrong = whole = 0.0
    step = rows_at_once(packed.columns)
    for start in range(0, packed.rows, step):
        true = matrix[start : start + step].astype(np.float32)
        difference = rows(packed, np.arange(start, start + len(true))) - true
        wrong += float(np.vdot(difference, difference))
        whole += float(np.vdot(true, true))
    return math.sqrt(wrong / whole) if whole else 0.0


def scales_finite(packed: PackedMatrix) -> bool:
    """Whether every scale is a number; none is where weights were too large for float16."""
    if not packed.group:
        return True
    tails = _tails(packed.kind, packed.group, packed.data)
    return all(bool(np.isfinite(tail).all()) for tail in tails)


def hadamard_128(x: FloatArray) -> FloatArray:
    """Each 128 of the last axis times the orthonormal Hadamard matrix (Sylvester order).

    By sums and differences of pairs 1, 2, 4 .. 64 apart, as the kernels do it: the same bits.
    """
    halves = np.ascontiguousarray(x, dtype=np.float32)
    for distance in (1, 2, 4, 8, 16, 32, 64):
        first, second = np.moveaxis(halves.reshape(-1, 2, distance), 1, 0)
        halves = np.stack((first + second, first - second), axis=1)
    return halves.reshape(x.shape) * np.float32(1 / math.sqrt(128))


def check_columns(columns: int, kind: Kind, group: int, rotated: bool) -> None:
    """UsageError unless a matrix of so many columns can be packed like this."""
    if group and group not in GROUPS:
        raise UsageError(f"group {group}: expected one of {', '.join(map(str, GROUPS))}", "group")
    multiples = {"rotated": 128 if rotated else 1, f"groups of {group}": group or 1,
                 kind: 2 if kind == "bf16" else 1}  # fmt: skip
    for name, multiple in multiples.items():
        if columns % multiple:
            raise UsageError(f"{columns} columns, {name}: expected a multiple of {multiple}")


def rows_at_once(columns: int) -> int:
    """Rows of whole blocks that fill about a megabyte: little memory, and it stays in the cache."""
    return BLOCK_ROWS * max(1, _VALUES_AT_ONCE // (columns * BLOCK_ROWS))


def _interleaved(words_RL: Words) -> Words:
    """Words of rows `[R, L]` as lines of blocks `[B, L, 16]`."""
    return words_RL.reshape(-1, BLOCK_ROWS, words_RL.shape[1]).transpose(0, 2, 1)


def _lines(kind: Kind, group: int, data: npt.NDArray[np.uint8]) -> Words:
    """A view of the lines: a word of 4 bytes a row, `[B, L, 16]`, or `[B, groups, L, 16]`."""
    words = data.view(np.uint32)
    if not group:
        return words.reshape(len(data), -1, BLOCK_ROWS)
    of_group = group * _BITS[kind] // 32 * BLOCK_ROWS
    tail = BLOCK_ROWS * _scale_bytes(kind) // 4
    words = words.reshape(len(data), -1, of_group + tail)[..., :of_group]
    return words.reshape(*words.shape[:2], -1, BLOCK_ROWS)


def _tails(kind: Kind, group: int, data: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float16]]:
    """Views of the scales and, of int4a, the minimums: `[B, groups, 16]` each."""
    of_group = group * _BITS[kind] // 16 * BLOCK_ROWS
    tail = BLOCK_ROWS * _scale_bytes(kind) // 2
    halves = data.view(np.float16).reshape(len(data), -1, of_group + tail)
    return [
        halves[..., at : at + BLOCK_ROWS] for at in range(of_group, of_group + tail, BLOCK_ROWS)
    ]


def _scale_bytes(kind: Kind) -> int:
    """What a row and group has after its numbers."""
    return 4 if kind == "int4a" else 2


def _write_quantised(
    values_RGD: FloatArray, kind: Kind, method: Method, data: npt.NDArray[np.uint8]
) -> None:
    """Quantises rows of groups into the bytes of their blocks."""
    group = values_RGD.shape[2]
    if kind == "int8":
        numbers, scales = _plain_int8(values_RGD)
    else:
        numbers, scales = searched_int4(values_RGD) if method == "search" else (
            _plain_int4(values_RGD)
        )  # fmt: skip
    _write_lines((numbers + np.float32(_ADDED[kind])).astype(np.uint8), kind, data)
    by_block = scales.reshape(len(data), BLOCK_ROWS, -1)
    _tails(kind, group, data)[0][:] = by_block.transpose(0, 2, 1)


def _write_lines(
    stored_RGD: npt.NDArray[np.uint8], kind: Kind, data: npt.NDArray[np.uint8]
) -> None:
    """Numbers of rows of groups, as they are stored, into the bytes of their blocks."""
    words = stored_RGD.view(np.uint32)
    if kind != "int8":
        # Words of four numbers: every second one goes into the high halves of the one before it.
        words = words[..., 0::2] | words[..., 1::2] << np.uint32(4)
    by_block = words.reshape(len(data), BLOCK_ROWS, *words.shape[1:])
    _lines(kind, stored_RGD.shape[2], data)[:] = by_block.transpose(0, 2, 3, 1)


def _numbers(words: Words, kind: Kind) -> FloatArray:
    """Words of one row's groups `[R, G, L]` as the numbers q `[R, G, D]`."""
    if kind == "int8":
        return words.view(np.uint8).astype(np.float32) - np.float32(128)
    low_half = np.uint32(0x0F0F0F0F)
    halves = np.stack((words & low_half, words >> np.uint32(4) & low_half), axis=-1)
    flat = halves.reshape(*words.shape[:2], -1)
    return flat.view(np.uint8).astype(np.float32) - np.float32(_ADDED[kind])


def _plain_int8(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    largest: FloatArray = np.abs(_extremes(values_RGD))
    scales = _stored(np.divide(largest, 127, dtype=np.float32))
    return _rounded(values_RGD, scales, -127, 127), scales


def _plain_int4(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """As llama.cpp's Q4_0: the value furthest from zero, whatever its sign, becomes -8."""
    scales = _stored(_extremes(values_RGD) / np.float32(-8))
    return _rounded(values_RGD, scales, -8, 7), scales


def searched_int4(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The scale of least squared error among candidates of both signs, each fitted to its numbers.

    For numbers q the best scale is `Wq / qq`, and the error that it leaves `WW - (Wq)^2 / qq`.
    """
    extremes = _extremes(values_RGD)
    best_gain = np.zeros_like(extremes)
    best = extremes / np.float32(-8)
    for extreme_becomes in _CANDIDATES:
        trial = extremes / np.float32(extreme_becomes)
        fitted, gain = _fitted(values_RGD, _rounded(values_RGD, trial, -8, 7))
        better = gain > best_gain
        best[better], best_gain[better] = fitted[better], gain[better]
    # Numbers for the fitted scale, a scale for these numbers, and numbers for that as it is stored.
    scales = _stored(_fitted(values_RGD, _rounded(values_RGD, best, -8, 7))[0])
    return _rounded(values_RGD, scales, -8, 7), scales


def _fitted(values_RGD: FloatArray, numbers_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The best scale for these numbers, and by how much it lowers the squared error."""
    products = _summed(values_RGD * numbers_RGD)
    squares: FloatArray = np.maximum(_summed(numbers_RGD * numbers_RGD), np.float32(1))
    scales = products / squares
    return scales, products * scales


def _summed(terms_RGD: FloatArray) -> FloatArray:
    """The sums of groups, in the order of the kernels: 16 lanes, then pairs of them."""
    lanes = terms_RGD.reshape(*terms_RGD.shape[:2], -1, 16)
    total = np.zeros_like(lanes[..., 0, :])
    for line in range(lanes.shape[2]):
        total += lanes[..., line, :]
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half : 2 * half]
    return total[..., 0]


def _extremes(values_RGD: FloatArray) -> FloatArray:
    """Of each group the value furthest from zero, with its sign."""
    high, low = values_RGD.max(axis=2), values_RGD.min(axis=2)
    extremes: FloatArray = np.where(high > -low, high, low) + np.float32(0)  # never -0
    return extremes


def _stored(scales: FloatArray) -> FloatArray:
    """The scales as float16 has them; 0 for one that is too small for it."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UsageError(TOO_LARGE)
    return halves.astype(np.float32)


def _rounded(values_RGD: FloatArray, scales_RG: FloatArray, low: int, high: int) -> FloatArray:
    """The whole numbers q within the bounds that come closest; 0 where the scale is 0."""
    inverse = np.divide(1, scales_RG, out=np.zeros_like(scales_RG), where=scales_RG != 0)
    numbers = values_RGD * inverse[..., None]
    np.rint(numbers, out=numbers)
    return np.clip(numbers, np.float32(low), np.float32(high), out=numbers)
