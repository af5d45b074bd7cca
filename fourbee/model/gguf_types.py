"""The tensor types of GGUF files: how large their blocks are, and their values in float32.

A quantised row is cut into blocks of 32 or 256 values that share a scale, some of them a minimum
too; K types have a second level of scales in 16 or 8 sub-blocks. The arithmetic and its order are
llama.cpp's, so the values are too, bit for bit. Quantising is `gguf_quants.py`; files are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

NumpyArray = npt.NDArray[Any]
# float32 and small integers in fact; NumPy's stubs widen the results of arithmetic.
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
# q [blocks, values]; scales and minimums [blocks, groups], None for no minimums.
Numbers = tuple[NumpyArray, NumpyArray, NumpyArray | None]

_SINGLE = np.dtype(np.float32)


@dataclass(frozen=True)
class TensorType:
    """A type: `block_values` values lie in `block_bytes` bytes, and are read as `dtype`."""

    name: str
    block_values: int
    block_bytes: int
    dtype: np.dtype[Any]
    # From records, one a block, to float32 [blocks, values]; None: the bytes are the values.
    dequantise: Callable[[NumpyArray], Floats] | None = None
    record: np.dtype[Any] | None = None

    def values(self, raw: Integers) -> NumpyArray:
        """The values of whole blocks, in a row. What is not finite in the file stays so."""
        if self.dequantise is None or self.record is None:
            return raw.view(self.dtype)
        with np.errstate(all="ignore"):
            return self.dequantise(raw.view(self.record)).reshape(-1)


def _fields(packed: Integers, width: int) -> Integers:
    """Bytes [..., n] cut into fields of `width` bits: [..., 8 / width, n], the lowest first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << width) - 1)


def _column(halves: NumpyArray) -> Floats:
    """A half a block, as [blocks, 1] to multiply with."""
    return halves.astype(np.float32)[:, None]


def _nibbles(block: NumpyArray) -> Integers:
    """[blocks, 32]: the low halves of 16 bytes, then the high ones."""
    return _fields(block["low"], 4).reshape(-1, 32)


def _five_bits(block: NumpyArray) -> Integers:
    """[blocks, 32]: nibbles, and the fifth bits from a word of 32."""
    return _nibbles(block) | (np.unpackbits(block["high"], axis=-1, bitorder="little") << 4)


def _q4_0(block: NumpyArray) -> Floats:
    return _column(block["scale"]) * (_nibbles(block).astype(np.float32) - 8)


def _q4_1(block: NumpyArray) -> Floats:
    return _column(block["scale"]) * _nibbles(block).astype(np.float32) + _column(block["min"])


def _q5_0(block: NumpyArray) -> Floats:
    return _column(block["scale"]) * (_five_bits(block).astype(np.float32) - 16)


def _q5_1(block: NumpyArray) -> Floats:
    return _column(block["scale"]) * _five_bits(block).astype(np.float32) + _column(block["min"])


def _q8_0(block: NumpyArray) -> Floats:
    return _column(block["scale"]) * block["low"].astype(np.float32)


def _scaled(block: NumpyArray, scales: NumpyArray, quants: NumpyArray) -> Floats:
    """(scale of the block * scale of the sub-block) * value, [blocks, sub-blocks, values]."""
    scales = _column(block["scale"]) * scales.astype(np.float32)
    return scales[..., None] * quants.astype(np.float32)


def _less_minimum(block: NumpyArray, minima: NumpyArray, values: Floats) -> Floats:
    return values - (_column(block["min"]) * minima.astype(np.float32))[..., None]


def _q2_k(block: NumpyArray) -> Floats:
    quants = _fields(block["low"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    values = _scaled(block, block["scales"] & 15, quants)
    return _less_minimum(block, block["scales"] >> 4, values)


def _q3_k(block: NumpyArray) -> Floats:
    low = _fields(block["low"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16).astype(np.int8)
    # A third bit that is not set takes four away.
    quants = low - 4 * (1 - _fields(block["high"], 1).reshape(-1, 16, 16).astype(np.int8))
    # 16 scales of 6 bits: nibbles of 8 bytes, then pairs of bits of 4 bytes.
    scales = _fields(block["scales"][:, :8], 4).reshape(-1, 16)
    scales = scales | (_fields(block["scales"][:, 8:], 2).reshape(-1, 16) << 4)
    return _scaled(block, scales.astype(np.int8) - np.int8(32), quants)


def _scales_and_minima(packed: Integers) -> tuple[Integers, Integers]:
    """8 scales and 8 minima of 6 bits each, from the 12 bytes of Q4_K and Q5_K.

    Bytes 0-3 and 4-7 hold the first four of each, and in their top bits the upper two bits of the
    last four, whose lower four bits are the nibbles of bytes 8-11.
    """
    scales, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([scales & 63, (rest & 15) | (scales >> 6 << 4)], axis=1),
        np.concatenate([minima & 63, (rest >> 4) | (minima >> 6 << 4)], axis=1),
    )


def _q4_k(block: NumpyArray) -> Floats:
    scales, minima = _scales_and_minima(block["scales"])
    quants = _fields(block["low"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _less_minimum(block, minima, _scaled(block, scales, quants))


def _q5_k(block: NumpyArray) -> Floats:
    scales, minima = _scales_and_minima(block["scales"])
    quants = _fields(block["low"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    quants = quants | (_fields(block["high"], 1) << 4)
    return _less_minimum(block, minima, _scaled(block, scales, quants))


def _q6_k(block: NumpyArray) -> Floats:
    quants = _fields(block["low"].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    quants = quants | (_fields(block["high"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32) << 4)
    quants = quants.astype(np.int8) - np.int8(32)
    return _scaled(block, block["scales"], quants.reshape(-1, 16, 16))


def _q4_0_numbers(block: NumpyArray) -> Numbers:
    return _nibbles(block).astype(np.int8) - np.int8(8), _column(block["scale"]), None


def _q4_1_numbers(block: NumpyArray) -> Numbers:
    return _nibbles(block), _column(block["scale"]), _column(block["min"])


def _q5_0_numbers(block: NumpyArray) -> Numbers:
    return _five_bits(block).astype(np.int8) - np.int8(16), _column(block["scale"]), None


def _q8_0_numbers(block: NumpyArray) -> Numbers:
    return block["low"], _column(block["scale"]), None


def _q4_k_numbers(block: NumpyArray) -> Numbers:
    scales, minima = _scales_and_minima(block["scales"])
    quants = _fields(block["low"].reshape(-1, 4, 32), 4).reshape(-1, 256)
    products = _column(block["scale"]) * scales.astype(np.float32)
    return quants, products, _column(block["min"]) * -minima.astype(np.float32)


# The whole numbers of types whose values are `scale * q + minimum` in groups of 32.
NUMBERS: Mapping[str, Callable[[NumpyArray], Numbers]] = {
    "Q4_0": _q4_0_numbers,
    "Q4_1": _q4_1_numbers,
    "Q5_0": _q5_0_numbers,
    "Q8_0": _q8_0_numbers,
    "Q4_K": _q4_k_numbers,
}


def _plain(name: str, dtype: np.dtype[Any]) -> TensorType:
    return TensorType(name, 1, dtype.itemsize, dtype)


def _quantised(
    name: str, values: int, dequantise: Callable[[NumpyArray], Floats], *fields: Any
) -> TensorType:
    record = np.dtype(list(fields))
    return TensorType(name, values, record.itemsize, _SINGLE, dequantise, record)


_SCALE, _MIN = ("scale", "<f2"), ("min", "<f2")
_LOW_16, _LOW_64, _LOW_128 = (("low", "u1", (size,)) for size in (16, 64, 128))
_HIGH_4, _HIGH_32, _HIGH_64 = (("high", "u1", (size,)) for size in (4, 32, 64))
_SCALES_12, _SCALES_16 = (("scales", "u1", (size,)) for size in (12, 16))

# By their numbers in the file (ggml_type).
TYPES: Mapping[int, TensorType] = {
    0: _plain("F32", _SINGLE),
    1: _plain("F16", np.dtype(np.float16)),
    30: _plain("BF16", np.dtype(ml_dtypes.bfloat16)),
    2: _quantised("Q4_0", 32, _q4_0, _SCALE, _LOW_16),
    3: _quantised("Q4_1", 32, _q4_1, _SCALE, _MIN, _LOW_16),
    6: _quantised("Q5_0", 32, _q5_0, _SCALE, _HIGH_4, _LOW_16),
    7: _quantised("Q5_1", 32, _q5_1, _SCALE, _MIN, _HIGH_4, _LOW_16),
    8: _quantised("Q8_0", 32, _q8_0, _SCALE, ("low", "i1", (32,))),
    10: _quantised("Q2_K", 256, _q2_k, _SCALES_16, _LOW_64, _SCALE, _MIN),
    11: _quantised("Q3_K", 256, _q3_k, _HIGH_32, _LOW_64, _SCALES_12, _SCALE),
    12: _quantised("Q4_K", 256, _q4_k, _SCALE, _MIN, _SCALES_12, _LOW_128),
    13: _quantised("Q5_K", 256, _q5_k, _SCALE, _MIN, _SCALES_12, _HIGH_32, _LOW_128),
    14: _quantised("Q6_K", 256, _q6_k, _LOW_128, _HIGH_64, ("scales", "i1", (16,)), _SCALE),
}
# Names of types that are not read, so that an error can say more than a number.
OTHER_TYPES: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
