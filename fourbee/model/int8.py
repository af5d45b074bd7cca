"""The packed checkpoint format `fourbee-int8`: matrices as int8 rows with one float32 scale each.

A matrix `NAME` `[N, D]` is stored as int8, its scales `[N]` as `NAME.scale`; vectors are stored as
float32. A quarter of float32's size and good enough to ship a small model; loading gives
dense weights again, so nothing else knows of it. Not a format to compute in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourbee.kernels.operations import FloatArray
from fourbee.model.packing import Part
from fourbee.model.tensor_file import NumpyArray

METHOD = "fourbee-int8"
SCALE = ".scale"


@dataclass(frozen=True)
class Int8Packing:
    """Every matrix packed, the embedding too; it has no settings."""

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        if len(shape) != 2:
            return {name: Part(shape)}
        return {name: Part(shape, ("I8",)), name + SCALE: Part(shape[:1])}

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        if name + SCALE not in arrays:
            return arrays[name]
        return unpack_rows(arrays[name], arrays[name + SCALE])

    def to_json(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


INT8 = Int8Packing()


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
