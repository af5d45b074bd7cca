"""PackedMatrix: a weight matrix as the native kernels read it, and the layout of its bytes.

Output rows lie in blocks of 16 (the last one filled up with zeros), each block one sequential
stream of lines of 64 bytes. What a line holds depends on the kind, n being a row of the block:

    f32    one column:    16 float32            W[n][d]
    bf16   two columns:   16 x 2 bfloat16       W[n][2d], W[n][2d+1]
    int8   four columns:  16 x 4 uint8          q[n][4d] .. q[n][4d+3], 128 added
    int4   eight columns: 16 x 4 bytes, the low half q[n][8d+i], the high half q[n][8d+4+i], 8 added
    int4a  as int4, with nothing added
    int4c  as int4a

int8 and int4 are symmetric, `W = scale * q`: after the lines of each group of columns come its 16
float16 scales (32 bytes), one a row. int8 q is from -128 to 127, int4 q from -8 to 7.
int4a is affine, `W = scale * q + minimum`, q from 0 to 15: after the scales come 16 float16
minimums. A minimum and not a zero point, as that holds GGUF's Q4_1 exactly, Q4_K but for the
rounding of two products, and groups whose scale is 0; of AWQ and GPTQ, whose zero points are whole,
`-zero * scale` is rounded to 11 bits, by at most 1/128 of a step (16 times 2^-11).
int4c (compact) is affine with a zero point, in the bytes of int4:
`W = base * scale_code * (q - zero_code / 16)`, q from 0 to 15. After the lines of each group come
16 bytes of scale codes, then 16 of zero codes; after all groups 16 float32 bases, one a row. The
largest scale of a row has code 255, a row of zeros base 0. Not for outliers that are a matter of
some columns: a group whose scale is far below the largest of its row has a coarse code, so that
matrices are rotated first.
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
from fourbee.kernels.rounding import (
    compact_int4,
    plain_int4,
    plain_int8,
    searched_int4,
    stored_scales,
)

Kind = Literal["f32", "bf16", "int8", "int4", "int4a", "int4c"]
Method = Literal["plain", "search"]
Words = npt.NDArray[np.uint32]
# Of the arithmetic below: raised whenever some matrix gets other bytes than before.
PACKER = 3
BLOCK_ROWS = 16
GROUPS = (32, 64, 128)
# Columns that share a scale where `--quantize` says no more.
GROUP = 64
_BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4, "int4a": 4, "int4c": 4}
# What is added to q, so that it is stored without a sign.
_ADDED = {"int8": 128, "int4": 8, "int4a": 0, "int4c": 0}
_FLOATS = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
_VALUES_AT_ONCE = 1 << 18
NOT_FINITE = "a matrix with NaN or infinity cannot be packed"


@dataclass(frozen=True)
class Packing:
    """How the matrices of a model are kept: `layers` those of the layers, `tables` the others."""

    layers: Kind
    tables: Kind  # embedding and head; never rotated
    rotated: bool = False  # the layers', by Hadamard-128: outliers are spread before rounding
    method: Method = "plain"  # of the layers' scales


# What `--quantize` offers, while a model loads and in a file.
PACKINGS = {
    "int8": Packing("int8", "int8"),
    "int4": Packing("int4c", "int8", rotated=True, method="search"),
}


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
    """Bytes of 16 rows: the lines, and what groups and rows have after them."""
    scales = columns // group * BLOCK_ROWS * _scale_bytes(kind) if group else 0
    return columns * BLOCK_ROWS * _BITS[kind] // 8 + scales + _base_bytes(kind)


def pack(
    matrix: npt.NDArray[Any],
    kind: Kind,
    group: int = 64,
    rotated: bool = False,
    method: Method = "search",
) -> PackedMatrix:
    """A matrix `[N, D]` of any float type, packed; UsageError where its columns do not fit.

    The group counts for whole numbers only, the method for int4 and int4c only. Not for int4a,
    which holds the numbers of other formats (`pack_affine`).
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
        if kind == "int4c":
            _write_compact(part.reshape(len(part), -1, group), method, target)
        elif group:
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
        halves = stored_scales(np.pad(values.astype(np.float32), filling))
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
        scales, *others = (tail[blocks, :, row].astype(np.float32)[..., None] for tail in tails)
        if packed.kind == "int4c":
            scales *= _bases(packed.data)[blocks, row, None, None]
            values_RGD -= others[0] * np.float32(1 / 16)
        values_RGD *= scales
        if packed.kind == "int4a":
            values_RGD += others[0]
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
    if packed.kind == "int4c":
        return bool(np.isfinite(_bases(packed.data)).all())
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
    words = data[:, : data.shape[1] - _base_bytes(kind)].view(np.uint32)
    if not group:
        return words.reshape(len(data), -1, BLOCK_ROWS)
    of_group = group * _BITS[kind] // 32 * BLOCK_ROWS
    tail = BLOCK_ROWS * _scale_bytes(kind) // 4
    words = words.reshape(len(data), -1, of_group + tail)[..., :of_group]
    return words.reshape(*words.shape[:2], -1, BLOCK_ROWS)


def _tails(kind: Kind, group: int, data: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
    """Views of what groups have after their lines, `[B, groups, 16]` each.

    The scales and, of int4a, the minimums; of int4c the codes of scales and of zero points.
    """
    of_type = np.dtype(np.uint8 if kind == "int4c" else np.float16)
    of_group = group * _BITS[kind] // 8 * BLOCK_ROWS // of_type.itemsize
    tail = BLOCK_ROWS * _scale_bytes(kind) // of_type.itemsize
    items = data[:, : data.shape[1] - _base_bytes(kind)].view(of_type)
    items = items.reshape(len(data), -1, of_group + tail)
    return [items[..., at : at + BLOCK_ROWS] for at in range(of_group, of_group + tail, BLOCK_ROWS)]


def _bases(data: npt.NDArray[np.uint8]) -> FloatArray:
    """A view of the bases of int4c, `[B, 16]`."""
    return data[:, -BLOCK_ROWS * 4 :].view(np.float32)


def _scale_bytes(kind: Kind) -> int:
    """What a row and group has after its numbers."""
    return 4 if kind == "int4a" else 2


def _base_bytes(kind: Kind) -> int:
    """What a block has after its groups."""
    return BLOCK_ROWS * 4 if kind == "int4c" else 0


def _write_quantised(
    values_RGD: FloatArray, kind: Kind, method: Method, data: npt.NDArray[np.uint8]
) -> None:
    """Quantises rows of groups into the bytes of their blocks."""
    group = values_RGD.shape[2]
    if kind == "int8":
        numbers, scales = plain_int8(values_RGD)
    else:
        numbers, scales = searched_int4(values_RGD) if method == "search" else (
            plain_int4(values_RGD)
        )  # fmt: skip
    _write_lines((numbers + np.float32(_ADDED[kind])).astype(np.uint8), kind, data)
    by_block = scales.reshape(len(data), BLOCK_ROWS, -1)
    _tails(kind, group, data)[0][:] = by_block.transpose(0, 2, 1)


def _write_compact(values_RGD: FloatArray, method: Method, data: npt.NDArray[np.uint8]) -> None:
    """Quantises rows of groups into the bytes of int4c."""
    numbers, codes_RG, zeros_RG, bases = compact_int4(values_RGD, method == "search")
    _write_lines(numbers.astype(np.uint8), "int4c", data)
    for tail, part in zip(
        _tails("int4c", values_RGD.shape[2], data), (codes_RG, zeros_RG), strict=True
    ):
        tail[:] = part.reshape(len(data), BLOCK_ROWS, -1).transpose(0, 2, 1)
    _bases(data)[:] = bases.reshape(len(data), BLOCK_ROWS)


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
