"""Quantised matrices of GGUF files as the native kernels read them, without being made dense.

Groups are of 32 columns throughout, so that matrices of one layer share their rounded inputs. Exact
are Q4_0 (int4), Q4_1 (int4a), Q5_0 and Q8_0 (int8). Of Q4_K (int4a) scale and minimum are products
that float16 rounds, by 2^-11 at most. Q2_K, Q3_K, Q5_1, Q5_K and Q6_K are rounded to int8, by at
most half of 1/127 of the largest weight of 32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fourbee.foundation.errors import UsageError
from fourbee.kernels.packed import Kind, PackedMatrix, pack, pack_numbers, rows_at_once, stacked
from fourbee.model.gguf_file import GgufTensor
from fourbee.model.gguf_types import NUMBERS

GROUP = 32
KINDS: Mapping[str, Kind] = {"Q4_0": "int4", "Q4_1": "int4a", "Q4_K": "int4a"}


def packed_matrix(tensor: GgufTensor) -> PackedMatrix | None:
    """A quantised matrix, some rows at a time; None for what no packed kind holds.

    Those are values that are not finite or too large for float16 scales.
    """
    rows, columns = tensor.shape
    step = rows_at_once(columns)
    starts = range(0, rows, step)
    try:
        return stacked(rows, (_packed_rows(tensor, at, min(at + step, rows)) for at in starts))
    except UsageError:
        return None


def _packed_rows(tensor: GgufTensor, first: int, end: int) -> PackedMatrix:
    kind, raw, count = tensor.type, tensor.raw_rows(first, end), end - first
    if kind.name not in NUMBERS:
        return pack(kind.values(raw).reshape(count, -1), "int8", GROUP)
    assert kind.record is not None
    with np.errstate(all="ignore"):
        q, scales, minimums = NUMBERS[kind.name](raw.view(kind.record))
    return pack_numbers(
        KINDS.get(kind.name, "int8"),
        q.reshape(count, -1),
        scales.reshape(count, -1),
        None if minimums is None else minimums.reshape(count, -1),
    )
