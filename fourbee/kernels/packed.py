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
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["f32", "bf16", "int8", "int4"]
BLOCK_ROWS = 16
GROUPS = (32, 64, 128)
_BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}


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
