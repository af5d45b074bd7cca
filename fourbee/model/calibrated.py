"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounding that knows what the inputs look like.

A matrix is rounded column by column; what a column loses is made up for by the columns that are not
rounded yet, as far as the inputs' second moments `X^T X` allow: the outputs, not the weights, come
closest. Columns go in order (no activation order), in blocks of a group, whose searched scale is
taken from the columns as they are by then; 1% of the mean is added to the diagonal.

Layer by layer: inputs are those that the layers before give, as they were rounded. In NumPy; memory
holds the hidden states of the calibration tokens, one layer, and about three float64 squares of its
widest input. Not here: reading calibration data (the caller's), the files (`quantize.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import UsageError
from fourbee.kernels.numpy_ops import NumpyOperations
from fourbee.kernels.operations import Array, FloatArray, Linear, LowRank
from fourbee.kernels.packed import (
    PackedMatrix,
    hadamard_128,
    pack_numbers,
    unpack,
)
from fourbee.kernels.paged_cache import own_caches
from fourbee.kernels.rounding import searched_int4
from fourbee.model.gguf_checkpoint import ModelTensors
from fourbee.model.packed_format import PackedFormat
from fourbee.model.positions import position_scheme
from fourbee.model.qwen3 import BlockWeights, block_forward
from fourbee.model.tensor_file import NumpyArray
from fourbee.model.weights import block_weights, tensor_shapes

LEAST_TOKENS = 2048
MOST_TOKENS = 16_384
# Tokens of a sequence; longer ones are cut.
SEQUENCE = 512
_TOKENS_AT_ONCE = 2048
_DAMPING = 0.01
_EMBEDDING = "model.embed_tokens.weight"

Moments = npt.NDArray[np.float32]


class CalibratedRounding:
    """The packed matrices of a model's layers, asked for in the order of the layers."""

    def __init__(
        self, tensors: ModelTensors, form: PackedFormat, sequences: Sequence[Sequence[int]]
    ) -> None:
        """`sequences` are token ids of texts like those that the model will see.

        UsageError where they are fewer than LEAST_TOKENS; what is beyond MOST_TOKENS is left out.
        """
        assert form.kind == "int4" and form.method == "gptq"
        self._tensors, self._form = tensors, form
        batches = _batches(sequences, tensors.config.vocab_size)
        table = tensors.dense(_EMBEDDING)
        self._lengths = [[len(one) for one in batch] for batch in batches]
        self._hidden: list[FloatArray] = [
            table[np.concatenate(batch)].astype(np.float32) for batch in batches
        ]
        self._layer = -1
        self._made: dict[str, PackedMatrix] = {}

    def packed(self, name: str) -> PackedMatrix:
        """The matrix of this name, of the same layer as the one before or of the next."""
        layer = int(name.split(".")[2])
        if layer != self._layer:
            assert layer == self._layer + 1, "layers are rounded in order"
            self._round_layer(layer)
        return self._made.pop(name)

    def _round_layer(self, layer: int) -> None:
        prefix = f"model.layers.{layer}."
        arrays: dict[str, NumpyArray] = {
            name: self._tensors.dense(name).astype(np.float32)
            for name in tensor_shapes(self._tensors.config)
            if name.startswith(prefix)
        }
        recording = RecordingOperations()
        block = block_weights(layer, arrays)
        for lengths, hidden in zip(self._lengths, self._hidden, strict=True):
            self._forward(block, lengths, hidden, recording)
        self._made, self._layer = {}, layer
        group, rotated = self._form.group, self._form.rotated
        shared: Moments | None = None
        for name, array in arrays.items():
            if array.ndim == 2:
                moments = recording.moments(array)
                if moments is not shared:
                    shared, factor = moments, inverse_factor(moments, rotated)
                self._made[name] = gptq(array, factor, group, rotated)
                arrays[name] = unpack(self._made[name])
        block, ops = block_weights(layer, arrays), NumpyOperations()
        self._hidden = [
            self._forward(block, lengths, hidden, ops)
            for lengths, hidden in zip(self._lengths, self._hidden, strict=True)
        ]

    def _forward(
        self,
        block: BlockWeights,
        lengths: list[int],
        hidden_TD: FloatArray,
        ops: NumpyOperations,
    ) -> FloatArray:
        """One layer over whole sequences that lie one after another."""
        config = self._tensors.config
        positions = np.concatenate([np.arange(length) for length in lengths])
        rotary = position_scheme(config).rotary(positions, ops)
        heads, head_dim = config.num_key_value_heads, config.head_dim
        caches = own_caches(ops, 1, heads, head_dim, lengths)
        attention = ops.cached_attention(list(zip(caches, lengths, strict=True)))
        out: FloatArray = block_forward(0, block, config, hidden_TD, rotary, attention, ops)
        return out


class RecordingOperations(NumpyOperations):
    """NumPy's operations that sum up `X^T X` of the inputs of every matrix."""

    def __init__(self) -> None:
        super().__init__()
        self._of_weight: dict[int, Moments] = {}
        self._input: FloatArray | None = None

    def moments(self, weight: Array) -> Moments:
        """`[D, D]` of the inputs that this matrix has been multiplied with."""
        return self._of_weight[id(weight)]

    def linear(self, x_TD: FloatArray, linear: Linear, delta: Sequence[LowRank] = ()) -> FloatArray:
        key = id(linear.weight)
        if x_TD is not self._input:  # query, key and value, and gate and up, share theirs
            size = x_TD.shape[1]
            self._shared = self._of_weight.get(key, np.zeros((size, size), np.float32))
            self._shared += x_TD.T @ x_TD
            self._input = x_TD
        self._of_weight[key] = self._shared
        return super().linear(x_TD, linear, delta)


def gptq(matrix: FloatArray, factor: FloatArray, group: int, rotated: bool) -> PackedMatrix:
    """The matrix `[N, D]` as int4, for inputs with this `inverse_factor` `[D, D]`.

    UsageError where a scale is more than float16 holds.
    """
    # What is still to be rounded, a column of the matrix a row.
    left_DN = (hadamard_128(matrix) if rotated else matrix).T.copy()
    numbers_DN = np.empty(left_DN.shape, dtype=np.int8)
    scales_NG = np.empty((len(matrix), len(factor) // group), dtype=np.float32)
    lost_GN = np.empty((group, len(matrix)), dtype=np.float32)
    for index, begin in enumerate(range(0, len(factor), group)):
        end = begin + group
        _, scales = searched_int4(np.ascontiguousarray(left_DN[begin:end].T)[:, None])
        scales_NG[:, index] = scale = scales[:, 0]
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        for column in range(begin, end):
            weights = left_DN[column]
            numbers_DN[column] = rounded = np.clip(np.rint(weights * inverse), -8, 7)
            lost = (weights - rounded * scale) / factor[column, column]
            left_DN[column:end] -= factor[column, column:end, None] * lost
            lost_GN[column - begin] = lost
        left_DN[end:] -= factor[begin:end, end:].T @ lost_GN
    packed = pack_numbers("int4", np.ascontiguousarray(numbers_DN.T), scales_NG)
    return replace(packed, rotated=rotated)


def inverse_factor(moments: Moments, rotated: bool) -> FloatArray:
    """The upper U with `U^T U = H^-1`, H being the damped moments of inputs, rotated or not.

    With rows and columns reversed, H is `L L^T`, and U is `L^-1` reversed.
    """
    if rotated:
        moments = hadamard_128(hadamard_128(moments).T)
    damped = moments.astype(np.float64)
    diagonal = np.einsum("dd->d", damped)
    # An input that is always zero: any number does as well.
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING * diagonal.mean()
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    inverse = np.linalg.solve(lower, np.eye(len(lower)))
    return np.triu(inverse[::-1, ::-1]).astype(np.float32)


def _batches(
    sequences: Sequence[Sequence[int]], vocabulary: int
) -> list[list[npt.NDArray[np.int64]]]:
    """Sequences cut to SEQUENCE tokens, up to MOST_TOKENS, some at a time."""
    batches: list[list[npt.NDArray[np.int64]]] = [[]]
    filled = total = 0
    for sequence in sequences:
        for begin in range(0, len(sequence), SEQUENCE):
            part = np.array(sequence[begin : begin + SEQUENCE], dtype=np.int64)
            if total + len(part) > MOST_TOKENS:
                return batches
            if filled + len(part) > _TOKENS_AT_ONCE:
                batches.append([])
                filled = 0
            batches[-1].append(part)
            filled, total = filled + len(part), total + len(part)
    if total < LEAST_TOKENS:
        raise UsageError(
            f"calibration: {total} tokens; expected at least {LEAST_TOKENS}, better {MOST_TOKENS}",
            "calibration",
        )
    return batches
