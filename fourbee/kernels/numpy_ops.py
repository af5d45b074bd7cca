"""The operations in NumPy, float32: what runs where neither native kernels nor torch can be had.

Correct and slow. The native operations inherit what is not worth a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourbee.kernels.attention_pattern import AttentionPattern
from fourbee.kernels.numpy_attention import NumpyAttention, NumpyPages
from fourbee.kernels.numpy_sampling import score_targets, select_tokens
from fourbee.kernels.operations import (
    WIDE_POSITIONS,
    Attention,
    FloatArray,
    HeadRequest,
    HeadResult,
    IntArray,
    Linear,
    LowRank,
    Rotary,
)
from fourbee.kernels.packed import hadamard_128
from fourbee.kernels.paged_cache import KvPages, PagedCache


class NumpyOperations:
    """`Operations` over NumPy arrays."""

    @property
    def backend(self) -> Literal["native", "torch", "numpy"]:
        return "numpy"

    @property
    def gpu_bytes(self) -> int | None:
        return None

    @property
    def numerics(self) -> str:
        return "numpy"

    def from_numpy(self, array: npt.NDArray[Any], table: bool = False) -> Any:
        return np.array(array, dtype=np.float32)

    def from_adapter(self, matrix: npt.NDArray[Any]) -> Any:
        return np.array(matrix, dtype=np.float32)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        return np.array(array)

    def embed(self, table: Any, token_ids: IntArray) -> FloatArray:
        rows: FloatArray = table[token_ids]
        return rows

    def rotary(self, inverse_frequencies: FloatArray, positions: IntArray, scale: float) -> Rotary:
        angles = positions[..., None].astype(np.float32) * inverse_frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        wide = positions >= WIDE_POSITIONS
        if wide.any():
            angles64 = positions[wide][:, None] * inverse_frequencies.astype(np.float64)
            cos[wide], sin[wide] = np.cos(angles64), np.sin(angles64)
        factor = np.float32(scale)
        return Rotary(cos * factor, sin * factor)

    def norm(self, x_TD: FloatArray, weight_D: FloatArray, eps: float) -> FloatArray:
        squares = np.square(x_TD).mean(-1, keepdims=True)
        normed: FloatArray = weight_D * (x_TD / np.sqrt(squares + np.float32(eps)))
        return normed

    def linear(self, x_TD: FloatArray, linear: Linear, delta: Sequence[LowRank] = ()) -> FloatArray:
        """`x W^T`, `[T, N]`, and adapters'; x is rotated first where the weight was."""
        x = hadamard_128(x_TD) if linear.rotated else x_TD
        product: FloatArray = x @ linear.weight.T
        for one in delta:
            product[one.rows] += x_TD[one.rows] @ one.down.T @ one.up.T
        return product

    def norm_linear(
        self,
        x_TD: FloatArray,
        norm_D: FloatArray,
        eps: float,
        linears: Sequence[Linear],
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> tuple[FloatArray, ...]:
        normed = self.norm(x_TD, norm_D, eps)
        deltas = deltas or [()] * len(linears)
        return tuple(
            self.linear(normed, one, delta) for one, delta in zip(linears, deltas, strict=True)
        )

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
        query_THK = self.norm(heads(query_TN, head_dim), query_norm_K, eps)
        key_TGK = self.norm(heads(key_TN, head_dim), key_norm_K, eps)
        query_QTHK = _rotate(query_THK[None], rotary.cos, rotary.sin)
        return query_QTHK, _rotate(key_TGK, rotary.cos[0], rotary.sin[0])

    def linear_residual(
        self,
        x_TN: FloatArray,
        linear: Linear,
        residual_TD: FloatArray,
        delta: Sequence[LowRank] = (),
    ) -> FloatArray:
        return residual_TD + self.linear(x_TN, linear, delta)

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
        delta_gate, delta_up, delta_down = deltas or ((), (), ())
        gated, upper = self.norm_linear(
            residual_TD, norm_D, eps, (gate, up), (delta_gate, delta_up)
        )
        with np.errstate(over="ignore"):  # exp of a very negative gate is infinite: 1 / inf = 0
            activated = gated / (1 + np.exp(-gated)) * upper
        return self.linear_residual(activated, down, residual_TD, delta_down)

    def select_rows(self, x_TD: FloatArray, rows: IntArray) -> FloatArray:
        return x_TD[rows]

    def new_pool(self, layers: int, kv_heads: int, head_dim: int, pages: int) -> KvPages:
        return NumpyPages(layers, kv_heads, head_dim, pages)

    def cached_attention(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> Attention:
        return NumpyAttention(chunks, patterns, slopes)

    def head(self, hidden_RD: FloatArray, head: Linear, request: HeadRequest) -> HeadResult:
        return select_tokens(self.linear(hidden_RD, head), request)

    def token_logprobs(
        self, hidden_RD: FloatArray, head: Linear, targets: IntArray, num_top: int
    ) -> HeadResult:
        return score_targets(self.linear(hidden_RD, head), targets, num_top)


def heads(x_TN: FloatArray, head_dim: int) -> FloatArray:
    """`[T, N]` as heads `[T, N / head_dim, head_dim]`."""
    return x_TN.reshape(len(x_TN), x_TN.shape[1] // head_dim, head_dim)


def _rotate(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    """Rotates pairs (i, i + K/2) of x `[..., T, H, K]`; cos and sin are `[..., T, K/2]`."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
