"""The operations over packed weights and paged keys and values, in the C++ kernels of csrc/.

Activations are float32 NumPy arrays. A row's bits depend only on its own tokens and keys: not on
the batch, the chunks of a prompt or the number of threads. What is not worth a kernel is inherited
from NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import CapacityError, UsageError
from fourbee.kernels import _native, native_head
from fourbee.kernels.attention_pattern import AttentionPattern
from fourbee.kernels.native_attention import NativePages, PagedAttention
from fourbee.kernels.native_plan import Plan
from fourbee.kernels.numpy_ops import NumpyOperations, heads
from fourbee.kernels.operations import (
    Attention,
    FloatArray,
    HeadRequest,
    HeadResult,
    IntArray,
    Linear,
    LowRank,
    Network,
    Operations,
    Rotary,
)
from fourbee.kernels.packed import (
    BLOCK_ROWS,
    GROUP,
    NOT_FINITE,
    PACKER,
    PACKINGS,
    Kind,
    Method,
    PackedMatrix,
    Packing,
    block_bytes,
    check_columns,
    scales_finite,
    unpack,
)
from fourbee.kernels.paged_cache import KvPages, PagedCache
from fourbee.kernels.rounding import TOO_LARGE

# What the weights of a checkpoint are kept in, by the compute type; and its keys and values.
KINDS: dict[str, Kind] = {"float32": "f32", "bfloat16": "bf16"}
# What keys and values are kept in besides.
_KV_KINDS: dict[str, Kind] = {**KINDS, "int8": "int8", "int4": "int4"}
# Rows that are made float32 at a time while a matrix is packed.
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class NativeMatrix:
    """A packed matrix as Python sees it and as the kernels do; both share its bytes."""

    packed: PackedMatrix
    weights: _native.PackedWeights

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape


def open_native(
    dtype: str, quantize: str = "none", threads: int | None = None, kv_type: str = "auto"
) -> Operations:
    """The native operations; UsageError for a type or a FOURBEE_ISA that they do not have.

    `quantize`: "none", "int8" or "int4". Keys and values are in `kv_type`: "auto" is int8 where
    weights are quantised and else `dtype`; int4 has a scale and a minimum for 64 dimensions.
    """
    if dtype not in KINDS:
        raise UsageError(
            f"dtype = {dtype!r}: native operations compute in {' or '.join(KINDS)}",
            parameter="dtype",
        )
    try:
        _native.set_threads(threads or len(os.sched_getaffinity(0)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    kind = KINDS[dtype]
    packing = Packing(kind, kind) if quantize == "none" else PACKINGS[quantize]
    if kv_type == "auto":
        return NativeOperations(kind if quantize == "none" else "int8", packing)
    return NativeOperations(_KV_KINDS[kv_type], packing)


class NativeOperations(NumpyOperations):
    """`Operations` in C++: matrices are packed when they are loaded."""

    def __init__(self, kv_kind: Kind, packing: Packing) -> None:
        super().__init__()
        self.kv_kind, self.packing = kv_kind, packing

    @property
    def backend(self) -> Literal["native", "torch", "numpy"]:
        return "native"

    @property
    def numerics(self) -> str:
        return f"native {PACKER} {_native.isa()} {self.packing}"

    def from_numpy(self, array: npt.NDArray[Any], table: bool = False) -> Any:
        if array.ndim != 2:
            return super().from_numpy(array)
        packing = self.packing
        kind, rotated = (packing.tables, False) if table else (packing.layers, packing.rotated)
        return self.from_packed(pack_natively(array, kind, GROUP, rotated, packing.method))

    def from_adapter(self, matrix: npt.NDArray[Any]) -> NativeMatrix:
        return self.from_packed(pack_natively(matrix, "f32", 0, rotated=False))

    @property
    def keeps_formats(self) -> bool:
        return self.packing not in PACKINGS.values()  # --quantize is for all matrices

    def from_packed(self, packed: PackedMatrix) -> NativeMatrix:
        """A matrix that is packed already, in whatever kind; its bytes are not copied."""
        return NativeMatrix(packed, _weights(packed))

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        return unpack(array.packed) if isinstance(array, NativeMatrix) else super().to_numpy(array)

    def embed(self, table: NativeMatrix, token_ids: IntArray) -> FloatArray:
        out = np.empty((len(token_ids), table.shape[1]), dtype=np.float32)
        _native.unpack_rows(table.weights, token_ids, out)
        return out

    def norm(self, x_TD: FloatArray, weight_D: FloatArray, eps: float) -> FloatArray:
        rows = np.ascontiguousarray(x_TD).reshape(-1, x_TD.shape[-1])
        out = np.empty_like(rows)
        _native.norm(rows, weight_D, eps, out)
        return out.reshape(x_TD.shape)

    def linear(self, x_TD: FloatArray, linear: Linear, delta: Sequence[LowRank] = ()) -> FloatArray:
        out = np.empty((len(x_TD), linear.weight.shape[0]), dtype=np.float32)
        _native.linear(linear.weight.weights, x_TD, out, False, _adapters(delta))
        return out

    def norm_linear(
        self,
        x_TD: FloatArray,
        norm_D: FloatArray,
        eps: float,
        linears: Sequence[Linear],
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> tuple[FloatArray, ...]:
        outs = [np.empty((len(x_TD), one.weight.shape[0]), dtype=np.float32) for one in linears]
        weights = [one.weight.weights for one in linears]
        _native.norm_linear(x_TD, norm_D, eps, weights, outs, [*map(_adapters, deltas or ())])
        return tuple(outs)

    def qk_norm_rotary(
        self,
        query_TN: FloatArray,
        key_TN: FloatArray,
        query_norm_K: FloatArray,
        key_norm_K: FloatArray,
        eps: float,
        rotary: Rotary,
    ) -> tuple[FloatArray, FloatArray]:
        head_dim = len(query_norm_K)
        query_THK = heads(query_TN, head_dim)
        key_TGK = heads(key_TN, head_dim)
        query_QTHK = np.empty((len(rotary.cos), *query_THK.shape), dtype=np.float32)
        for cos, sin, out in zip(rotary.cos, rotary.sin, query_QTHK, strict=True):
            _native.rotate_heads(query_THK, query_norm_K, eps, cos, sin, out)
        rotated_TGK = np.empty_like(key_TGK)
        _native.rotate_heads(key_TGK, key_norm_K, eps, rotary.cos[0], rotary.sin[0], rotated_TGK)
        return query_QTHK, rotated_TGK

    def linear_residual(
        self,
        x_TN: FloatArray,
        linear: Linear,
        residual_TD: FloatArray,
        delta: Sequence[LowRank] = (),
    ) -> FloatArray:
        out = residual_TD.copy()
        _native.linear(linear.weight.weights, x_TN, out, True, _adapters(delta))
        return out

    def gated_mlp(
        self,
        residual_TD: FloatArray,
        norm_D: FloatArray,
        eps: float,
        gate: Linear,
        up: Linear,
        down: Linear,
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> FloatArray:
        three = (gate.weight.weights, up.weight.weights, down.weight.weights)
        _native.gated_mlp(residual_TD, norm_D, eps, *three, [*map(_adapters, deltas or ())])
        return residual_TD

    def new_pool(self, layers: int, kv_heads: int, head_dim: int, pages: int) -> KvPages:
        if head_dim % 16:
            raise UsageError(
                f"head_dim = {head_dim}: native operations need a multiple of 16; "
                "use another backend"
            )
        try:
            pool = _native.KvPool(layers, kv_heads, head_dim, self.kv_kind, pages)
        except MemoryError:
            raise CapacityError(
                f"the system does not give {pages} pages of keys and values: lower --max-context"
            ) from None
        return NativePages(pool, self.kv_kind)

    def cached_attention(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> Attention:
        return PagedAttention(chunks, patterns, slopes)

    def head(self, hidden_RD: FloatArray, head: Linear, request: HeadRequest) -> HeadResult:
        weight = head.weight
        return native_head.select_tokens(hidden_RD, weight.weights, weight.shape[0], request)

    def token_logprobs(
        self, hidden_RD: FloatArray, head: Linear, targets: IntArray, num_top: int
    ) -> HeadResult:
        weight = head.weight
        return native_head.score_targets(
            hidden_RD, weight.weights, weight.shape[0], targets, num_top
        )

    @property
    def rounds_keys(self) -> bool:
        return self.kv_kind in ("int8", "int4")

    def planned(self, network: Network) -> Network:
        return Plan(network, self)

    def interrupt(self) -> None:
        _native.abort()


def pack_natively(
    matrix: npt.NDArray[Any], kind: Kind, group: int, rotated: bool, method: Method = "search"
) -> PackedMatrix:
    """What `packed.pack` makes of a matrix, byte for byte, made by the kernels.

    UsageError where columns do not fit, for NaN or infinity among what is to be whole numbers, and
    where a scale is more than float16 holds.
    """
    rows, columns = matrix.shape
    group = 0 if kind in ("f32", "bf16") else group
    check_columns(columns, kind, group, rotated)
    blocks = -(-rows // BLOCK_ROWS)
    data = np.empty((blocks, block_bytes(kind, columns, group)), dtype=np.uint8)
    searched = method == "search"
    for begin in range(0, rows, _ROWS_AT_A_TIME):
        part = np.ascontiguousarray(matrix[begin : begin + _ROWS_AT_A_TIME], dtype=np.float32)
        # A float keeps it, and it is seen in the logits; whole numbers would hide it.
        if group and not np.isfinite(part).all():
            raise UsageError(NOT_FINITE)
        end = begin // BLOCK_ROWS - (-len(part) // BLOCK_ROWS)
        _native.pack(kind, group, rotated, searched, part, data[begin // BLOCK_ROWS : end])
    packed = PackedMatrix(kind, rows, columns, group, rotated, data)
    if not scales_finite(packed):
        raise UsageError(TOO_LARGE)
    return packed


def _adapters(delta: Sequence[LowRank]) -> list[_native.Adapter]:
    return [_native.Adapter(one.rows, one.down.weights, one.up.weights) for one in delta]


def rows_natively(packed: PackedMatrix, ids: npt.NDArray[np.integer[Any]]) -> FloatArray:
    """What `packed.rows` gives, bit for bit."""
    out = np.empty((len(ids), packed.columns), dtype=np.float32)
    _native.unpack_rows(_weights(packed), ids.astype(np.int64), out)
    return out


def _weights(packed: PackedMatrix) -> _native.PackedWeights:
    return _native.PackedWeights(
        packed.kind, packed.rows, packed.columns, packed.group, packed.rotated, packed.data
    )
