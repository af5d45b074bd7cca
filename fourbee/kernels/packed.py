"""PackedMatrix: a weight matrix as the native kernels read it, and the layout of its bytes.

Output rows lie in blocks of 16 (the last one filled up with zeros), each block one sequential
stream of lines of 64 bytes. What a line holds depends on the kind, n being a row of the block:

    f32    one column:    16 float32            W[n][d]
    bf16   two columns:   16 x 2 bfloat16       W[n][2d], W[n][2d+1]
    int8   four columns:  16 x 4 uint8          q[n][4d] .. q[n][4d+3], 128 added
    int4   eight columns: 16 x 4 bytes, the low half q[n][8d+i], the high half q[n][8d+4+i], 8 added

int8 and int4 are symmetric, `W = scale * q`: after the lines of each group of columns come its 16
float16 scales (32 bytes), one a row. int8 q is within +-127, int4 q from -8 to 7.
`rotated` says that the rows of W were multiplied by the Hadamard-128 matrix: so must inputs be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import FloatArray

Kind = Literal["f32", "bf16", "int8", "int4"]
BLOCK_ROWS = 16
GROUPS = (32, 64, 128)
_BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}
_ZERO = {"int8": 128, "int4": 8}  # what is added to make q unsigned
_MOST = {"int8": 127, "int4": 7}
# Matrices are packed by this many blocks, so that little memory is needed beside them.
_BLOCKS_AT_A_TIME = 64


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
    """Bytes of 16 rows: the lines and, of int8 and int4, a scale of 2 bytes a row and group."""
    scales = columns // group * BLOCK_ROWS * 2 if group else 0
    return columns * BLOCK_ROWS * _BITS[kind] // 8 + scales


def pack(
    matrix: npt.NDArray[Any], kind: Kind, group: int = 64, rotated: bool = False
) -> PackedMatrix:
    """W `[rows, columns]` packed; int8 and int4 by the largest of each group (plain rounding)."""
    rows, columns = matrix.shape
    check_packing(kind, columns, group, rotated)
    blocks = -(-rows // BLOCK_ROWS)
    group = group if kind in ("int8", "int4") else 0
    data = np.empty((blocks, block_bytes(kind, columns, group)), dtype=np.uint8)
    for begin in range(0, blocks, _BLOCKS_AT_A_TIME):
        end = min(blocks, begin + _BLOCKS_AT_A_TIME)
        dense = np.zeros(((end - begin) * BLOCK_ROWS, columns), dtype=np.float32)
        part = matrix[begin * BLOCK_ROWS : end * BLOCK_ROWS]
        dense[: len(part)] = part
        if rotated:
            dense = hadamard_128(dense)
        data[begin:end] = _lines(dense.reshape(-1, BLOCK_ROWS, columns), kind, group)
    return PackedMatrix(kind, rows, columns, group, rotated, data)


def unpack(packed: PackedMatrix) -> FloatArray:
    """The matrix that the bytes stand for, float32 `[rows, columns]`, rotated back."""
    dense = np.empty((len(packed.data) * BLOCK_ROWS, packed.columns), dtype=np.float32)
    for begin in range(0, len(packed.data), _BLOCKS_AT_A_TIME):
        part = _dense(packed, packed.data[begin : begin + _BLOCKS_AT_A_TIME])
        dense[begin * BLOCK_ROWS : begin * BLOCK_ROWS + len(part)] = part
    return dense[: packed.rows]


def hadamard_128(x: FloatArray) -> FloatArray:
    """Each 128 of the last axis times the orthonormal Hadamard matrix (Sylvester order)."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // 128, 128).astype(np.float32)
    for half in (1, 2, 4, 8, 16, 32, 64):
        pairs = blocks.reshape(*blocks.shape[:-1], 64 // half, 2, half)
        upper, lower = pairs[..., 0, :], pairs[..., 1, :]
        blocks = np.stack((upper + lower, upper - lower), axis=-2).reshape(blocks.shape)
    result: FloatArray = (blocks * np.float32(128**-0.5)).reshape(x.shape)
    return result


def check_packing(kind: Kind, columns: int, group: int, rotated: bool) -> None:
    """UsageError where a matrix of so many columns cannot be packed like this."""
    multiple = {"f32": 1, "bf16": 2}.get(kind, group)
    if rotated:
        multiple = max(multiple, 128)
    if columns % multiple:
        raise UsageError(f"columns = {columns}: {kind} needs a multiple of {multiple}")


def _lines(blocks: FloatArray, kind: Kind, group: int) -> npt.NDArray[np.uint8]:
    """The bytes of blocks `[B, 16, D]`, `[B, block_bytes]`."""
    count, rows, columns = blocks.shape
    if kind == "f32":
        return _bytes(blocks.transpose(0, 2, 1))
    if kind == "bf16":
        pairs = blocks.astype(ml_dtypes.bfloat16).reshape(count, rows, columns // 2, 2)
        return _bytes(pairs.transpose(0, 2, 1, 3))
    most = _MOST[kind]
    grouped = blocks.reshape(count, rows, columns // group, group)
    scales = (np.abs(grouped).max(-1) / np.float32(most)).astype(np.float16)
    divisors = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
    whole = np.clip(np.rint(grouped / divisors[..., None]), -most, most).astype(np.int16)
    shape = (count, rows, columns // group)
    if kind == "int8":
        values = (whole + 128).astype(np.uint8).reshape(*shape, group // 4, 4)
    else:
        halves = (whole + 8).astype(np.uint8).reshape(*shape, group // 8, 2, 4)
        values = halves[..., 0, :] | halves[..., 1, :] << 4
    lines = values.transpose(0, 2, 3, 1, 4).reshape(count, shape[2], -1)
    scale_bytes = np.ascontiguousarray(scales.transpose(0, 2, 1)).view(np.uint8)
    return np.concatenate([lines, scale_bytes], axis=-1).reshape(count, -1)


def _dense(packed: PackedMatrix, data: npt.NDArray[np.uint8]) -> FloatArray:
    """The inverse of `_lines`, rotated back: `[16 B, D]`."""
    count, columns, group = len(data), packed.columns, packed.group
    if packed.kind == "f32":
        dense = data.view(np.float32).reshape(count, columns, BLOCK_ROWS).transpose(0, 2, 1)
    elif packed.kind == "bf16":
        pairs = data.view(ml_dtypes.bfloat16).reshape(count, columns // 2, BLOCK_ROWS, 2)
        dense = pairs.transpose(0, 2, 1, 3).astype(np.float32)
    else:
        parts = data.reshape(count, columns // group, -1)
        values, scales = parts[..., : -2 * BLOCK_ROWS], parts[..., -2 * BLOCK_ROWS :]
        halves = [values] if packed.kind == "int8" else [values & 15, values >> 4]
        lines = [one.reshape(count, columns // group, -1, BLOCK_ROWS, 1, 4) for one in halves]
        whole = np.concatenate(lines, axis=4).transpose(0, 3, 1, 2, 4, 5)
        whole = whole.reshape(count, BLOCK_ROWS, columns // group, group).astype(np.float32)
        factors = np.ascontiguousarray(scales).view(np.float16).astype(np.float32)
        dense = (whole - _ZERO[packed.kind]) * factors.transpose(0, 2, 1)[..., None]
    dense = np.ascontiguousarray(dense.reshape(count * BLOCK_ROWS, columns))
    return hadamard_128(dense) if packed.rotated else dense


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)
