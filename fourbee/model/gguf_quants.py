"""Float values into the bytes of GGUF's tensor types: F32, F16, BF16, Q8_0 and Q4_0.

The arithmetic and its order are those of llama.cpp's reference, so the bytes are too. Reading them
back is `gguf_types.py`; types with two levels of scales (K types) are read there, never made here.
"""

from __future__ import annotations

import numpy as np

from fourbee.foundation.errors import ModelFileError
from fourbee.model.gguf_types import TYPES, Floats, NumpyArray, TensorType

# The types that are written, by name, with their numbers in the file.
WRITTEN = {
    kind.name: (number, kind)
    for number, kind in TYPES.items()
    if kind.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
}


def encode(kind: TensorType, values: NumpyArray, name: str) -> NumpyArray:
    """The bytes of whole rows, in a row; ModelFileError, naming the tensor, where they don't fit.

    Floats of one's own type keep their bits; others are rounded to the nearest.
    """
    if kind.record is None:
        with np.errstate(over="ignore"):
            plain = np.ascontiguousarray(values.astype(kind.dtype, copy=False)).reshape(-1)
        if kind.name == "F16" and values.dtype != np.float16:
            _refuse_infinite(plain, name, "beyond 65504, the end of F16; expected type bf16 or f32")
        return plain.view(np.uint8)
    blocks = values.astype(np.float32, copy=False).reshape(-1, kind.block_values)
    _refuse_infinite(blocks, name, "not finite; expected finite ones for type " + kind.name.lower())
    with np.errstate(all="ignore"):
        records = _q8_0(blocks, kind) if kind.name == "Q8_0" else _q4_0(blocks, kind)
    _refuse_infinite(records["scale"], name, "too large for a scale of 16 bits; expected type f32")
    return records.view(np.uint8).reshape(-1)


def _q8_0(blocks: Floats, kind: TensorType) -> NumpyArray:
    """A scale, the largest value / 127, and 32 signed bytes, halves rounded away from zero."""
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    scaled = blocks * _inverse(scale)[:, None]
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    records = np.empty(len(blocks), dtype=kind.record)
    records["scale"], records["low"] = scale, rounded
    return records


def _q4_0(blocks: Floats, kind: TensorType) -> NumpyArray:
    """A scale, the value of largest size / -8, and 16 bytes: values 0-15 low, 16-31 high."""
    largest = np.abs(blocks).argmax(axis=1)
    scale = np.take_along_axis(blocks, largest[:, None], axis=1)[:, 0] / np.float32(-8)
    quants = (blocks * _inverse(scale)[:, None] + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    records = np.empty(len(blocks), dtype=kind.record)
    records["scale"], records["low"] = scale, quants[:, :16] | (quants[:, 16:] << 4)
    return records


def _inverse(scale: Floats) -> Floats:
    return np.where(scale == 0, np.float32(0), 1 / scale)


def _refuse_infinite(values: NumpyArray, name: str, problem: str) -> None:
    if not np.isfinite(values).all():
        raise ModelFileError(f"{name}: has numbers that are {problem}")
