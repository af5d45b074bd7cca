"""The packed checkpoint format `fourbee-int8`: matrices as int8 rows with one float32 scale each.

A matrix `NAME` `[N, D]` is stored as int8, its scales `[N]` as `NAME.scale`; vectors are stored as
float32. A quarter of float32's size and good enough to ship a small model; loading gives
dense weights again, so nothing else knows of it. Not a format to compute in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fourbee.kernels.operations import FloatArray

SCALE = ".scale"


def packed_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a packed checkpoint stores for tensors of these names and shapes."""
    scales = {name + SCALE: shape[:1] for name, shape in shapes.items() if len(shape) == 2}
    return dict(shapes) | scales


def pack_rows(matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Int8 values `[N, D]` and scales `[N]` of a matrix: `value * scale` is within half a scale."""
    rows = matrix.astype(np.float32)
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))  # a row of zeros stays one
    rows /= divisors[:, None]
    np.rint(rows, out=rows)
    return rows.astype(np.int8), scales


def unpack_rows(values: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """The float32 matrix `[N, D]` of packed rows."""
    return np.multiply(values, scales[:, None], dtype=np.float32)
