"""The packed checkpoint formats `awq` and `gptq`: small whole numbers, scaled in groups of inputs.

Of a layer `X` with `N` outputs and `K` inputs, both store `X.qweight`, `X.qzeros` (int32, 32 / bits
fields a word) and `X.scales` `[G, N]`: weight `[n, k]` is `(q - z) * s`, where `z` and `s` are
those of output `n` and of the group of input `k`. They differ in how fields lie in words. Read
only, into dense weights or as the native kernels read them: 4 bits as int4a, whose minimum
`-z * s` float16 rounds by 2^-11 at most, and 8 bits as int8. Written by AutoAWQ, AutoGPTQ and
GPTQModel.

Shape letters: N outputs, K inputs, G groups, P fields a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.kernels.operations import FloatArray
from fourbee.kernels.packed import (
    GROUPS,
    PackedMatrix,
    pack,
    pack_affine,
    pack_numbers,
    rows_at_once,
    stacked,
)
from fourbee.model.packing import Part, Settings, is_packed
from fourbee.model.tensor_file import NumpyArray

Words = npt.NDArray[np.uint32]

AWQ, GPTQ = "awq", "gptq"
# Field i of an AWQ word holds column _AWQ_ORDER[i] of the word's eight.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_SHIFTS = np.array([4 * _AWQ_ORDER.index(column) for column in range(8)], dtype=np.uint32)
_INT32 = ("I32",)
# Inputs unpacked at a time: a multiple of the fields of a word, and little beside a whole matrix.
_STEP = 64


@dataclass(frozen=True)
class _Fields:
    """A packed layer, its words cut: `values(start, end)` are inputs `[k, N]`; `[G, N]`, `[K]`."""

    values: Callable[[int, int], Words]
    zeros: Words
    scales: NumpyArray
    group_K: NumpyArray


@dataclass(frozen=True)
class AwqPacking:
    """AutoAWQ's `gemm` layout: 4 bits, a word holds eight outputs of one input, interleaved."""

    group_size: int
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, settings: Settings) -> AwqPacking:
        """ModelFileError for other layouts."""
        settings.one_of("bits", (4,))
        settings.one_of("version", ("gemm", "GEMM"), "gemm")
        settings.one_of("zero_point", (True,), True)
        return cls(settings.group_size(), settings.kept_modules())

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        if not is_packed(name, shape, self.kept):
            return {name: Part(shape)}
        module = name.removesuffix("weight")
        outputs, inputs = shape
        _check_fields(module, 4, outputs, "outputs")
        groups = _groups(module, self.group_size, inputs)
        return {
            module + "qweight": Part((inputs, outputs // 8), _INT32),
            module + "qzeros": Part((groups, outputs // 8), _INT32),
            module + "scales": Part((groups, outputs)),
        }

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        return arrays[name] if name in arrays else _scaled(self._fields(name, arrays))

    def packed(self, name: str, arrays: Mapping[str, NumpyArray]) -> PackedMatrix | None:
        """A packed layer for the kernels; None for a dense tensor and for groups they lack."""
        return None if name in arrays else _packed(4, self._fields(name, arrays))

    def _fields(self, name: str, arrays: Mapping[str, NumpyArray]) -> _Fields:
        module = name.removesuffix("weight")
        words_KW = _words(arrays[module + "qweight"])
        zeros_GN = _in_row(_words(arrays[module + "qzeros"]), _AWQ_SHIFTS, 4)
        inputs, groups = len(words_KW), len(zeros_GN)
        return _Fields(
            lambda start, end: _in_row(words_KW[start:end], _AWQ_SHIFTS, 4),
            zeros_GN,
            arrays[module + "scales"],
            np.arange(inputs) // (inputs // groups),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "quant_method": AWQ,
            "bits": 4,
            "group_size": self.group_size,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": list(self.kept),
        }


@dataclass(frozen=True)
class GptqPacking:
    """GPTQ's layout: a word holds 32 / bits inputs of one output, the first in the lowest bits."""

    bits: int
    group_size: int
    # Whether inputs were quantised by activation: groups are then no runs, and `g_idx` is needed.
    desc_act: bool = False
    # `gptq` stores zero points less one, `gptq_v2` as they are.
    checkpoint_format: str = GPTQ
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, settings: Settings) -> GptqPacking:
        """ModelFileError for other layouts, and for layers that differ from one another."""
        bits = settings.one_of("bits", (4, 8))
        settings.one_of("pack_dtype", ("int32",), "int32")
        settings.one_of("lm_head", (False,), False)
        settings.one_of("is_marlin_format", (False,), False)
        settings.absent("dynamic")
        settings.absent("modules_in_block_to_quantize")
        # GPTQModel and transformers write either key, some releases both.
        key = "checkpoint_format" if settings.values.get("checkpoint_format") else "format"
        return cls(
            bits,
            settings.group_size(),
            settings.one_of("desc_act", (False, True), False),
            settings.one_of(key, (GPTQ, "gptq_v2"), GPTQ),
            settings.kept_modules(),
        )

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        if not is_packed(name, shape, self.kept):
            return {name: Part(shape)}
        module = name.removesuffix("weight")
        outputs, inputs = shape
        _check_fields(module, self.bits, inputs, "inputs")
        _check_fields(module, self.bits, outputs, "outputs")
        groups = _groups(module, self.group_size, inputs)
        fields = 32 // self.bits
        return {
            module + "qweight": Part((inputs // fields, outputs), _INT32),
            module + "qzeros": Part((groups, outputs // fields), _INT32),
            module + "scales": Part((groups, outputs)),
            module + "g_idx": Part((inputs,), _INT32, optional=not self.desc_act),
        }

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        return arrays[name] if name in arrays else _scaled(self._fields(name, arrays))

    def packed(self, name: str, arrays: Mapping[str, NumpyArray]) -> PackedMatrix | None:
        """As `AwqPacking.packed`; None also where groups are no runs of inputs (`desc_act`)."""
        return None if name in arrays else _packed(self.bits, self._fields(name, arrays))

    def _fields(self, name: str, arrays: Mapping[str, NumpyArray]) -> _Fields:
        module = name.removesuffix("weight")
        bits, fields = self.bits, 32 // self.bits
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        words_WN = _words(arrays[module + "qweight"])
        zero_words = _words(arrays[module + "qzeros"])
        if self.checkpoint_format == GPTQ:
            # One more in every field, carrying into the next: the inverse of GPTQModel's writer,
            # which takes one from each field of a word by one subtraction.
            zero_words = zero_words + np.uint32(sum(1 << int(shift) for shift in shifts))
        inputs, groups = len(words_WN) * fields, len(zero_words)
        group_K = arrays.get(module + "g_idx")
        if group_K is None:
            group_K = np.arange(inputs) // (inputs // groups)
        _check_groups(module, group_K, groups)
        return _Fields(
            lambda start, end: _in_column(words_WN[start // fields : end // fields], shifts, bits),
            _in_row(zero_words, shifts, bits),
            arrays[module + "scales"],
            group_K,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "quant_method": GPTQ,
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "checkpoint_format": self.checkpoint_format,
            "modules_to_not_convert": list(self.kept),
        }


def _check_fields(module: str, bits: int, size: int, side: str) -> None:
    fields = 32 // bits
    if size % fields:
        raise ModelFileError(
            f"config.json: quantization_config.bits = {bits}: expected a multiple of {fields} "
            f"{side} in every packed layer, {module[:-1]} has {size}"
        )


def _groups(module: str, group_size: int, inputs: int) -> int:
    """How many groups the inputs of a layer make."""
    if group_size == -1:
        return 1
    if inputs % group_size:
        raise ModelFileError(
            f"config.json: quantization_config.group_size = {group_size}: expected a divisor of "
            f"{inputs}, the inputs of {module[:-1]}"
        )
    return inputs // group_size


def _check_groups(module: str, group_K: NumpyArray, groups: int) -> None:
    wrong = group_K[(group_K < 0) | (group_K >= groups)]
    if wrong.size:
        raise ModelFileError(
            f"{module}g_idx has group {wrong[0]}: expected whole numbers from 0 to {groups - 1}"
        )


def _words(array: NumpyArray) -> Words:
    """The same 32 bits without a sign, so that shifts bring in zeros."""
    return array.view(np.uint32)


def _in_row(words: Words, shifts: Words, bits: int) -> Words:
    """Fields that follow one another along the row: `[R, W]` to `[R, W * P]`."""
    fields_RWP = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    return fields_RWP.reshape(len(words), -1)


def _in_column(words: Words, shifts: Words, bits: int) -> Words:
    """Fields that follow one another down the column: `[W, N]` to `[W * P, N]`."""
    fields_WPN = (words[:, None, :] >> shifts[:, None]) & np.uint32(2**bits - 1)
    return fields_WPN.reshape(-1, words.shape[1])


def _packed(bits: int, fields: _Fields) -> PackedMatrix | None:
    """`_scaled` as the kernels read it, without being dense in between where that is not needed."""
    inputs, groups = len(fields.group_K), len(fields.zeros)
    size = inputs // groups
    fitting = [group for group in GROUPS if size % group == 0]
    if not fitting or not np.array_equal(fields.group_K, np.arange(inputs) // size):
        return None
    try:
        if bits == 8 and not (fields.zeros == 128).all():
            return pack(_scaled(fields), "int8", fitting[-1])
        return _packed_fields(bits, fields, size // fitting[-1])
    except UsageError:  # not finite, or too large for float16
        return None


def _packed_fields(bits: int, fields: _Fields, parts: int) -> PackedMatrix:
    """The fields as they are; each group becomes so many with the same scale."""
    inputs, outputs = len(fields.group_K), fields.scales.shape[1]
    q_NK = np.empty((outputs, inputs), dtype=np.uint8)
    for start in range(0, inputs, _STEP):
        end = min(start + _STEP, inputs)
        q_NK[:, start:end] = fields.values(start, end).T
    scales_GN = fields.scales.astype(np.float32)
    minima_GN = -fields.zeros.astype(np.float32) * scales_GN
    scales_NG, minima_NG = (np.repeat(x.T, parts, axis=1) for x in (scales_GN, minima_GN))
    step = rows_at_once(inputs)

    def rows(start: int) -> PackedMatrix:
        q, s, m = (x[start : start + step] for x in (q_NK, scales_NG, minima_NG))
        return pack_affine(q, s, m) if bits == 4 else pack_numbers("int8", q.astype("i2") - 128, s)

    return stacked(outputs, map(rows, range(0, outputs, step)))


def _scaled(fields: _Fields) -> FloatArray:
    """The float32 matrix `[N, K]`, a few inputs at a time.

    Exact: a difference of up to 9 bits times a 16-bit scale's at most 11 fits float32's 24.
    """
    values, group_K = fields.values, fields.group_K
    zeros_GN, scales_GN = fields.zeros.astype(np.float32), fields.scales.astype(np.float32)
    dense_NK = np.empty((scales_GN.shape[1], len(group_K)), dtype=np.float32)
    for start in range(0, len(group_K), _STEP):
        end = min(start + _STEP, len(group_K))
        groups = group_K[start:end]
        block_kN = np.subtract(values(start, end), zeros_GN[groups], dtype=np.float32)
        block_kN *= scales_GN[groups]
        dense_NK[:, start:end] = block_kN.T
    return dense_NK
