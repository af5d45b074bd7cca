"""The operations in plain PyTorch: the reference, with autograd, on CPU and on CUDA unchanged.

Clear before fast: other backends are measured against it and compared with it. Norms, rotations
and log-probabilities are computed in float32, linears in the compute type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourbee.kernels.attention_pattern import AttentionPattern
from fourbee.kernels.operations import (
    WIDE_POSITIONS,
    FloatArray,
    HeadRequest,
    HeadResult,
    IntArray,
    Linear,
    LowRank,
    Rotary,
)
from fourbee.kernels.paged_cache import PagedCache
from fourbee.kernels.torch_attention import CachedAttention, TorchPages
from fourbee.kernels.torch_sampling import score_targets, select_tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchOperations:
    """`Operations` over torch tensors on one device, in one compute type."""

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype

    @property
    def backend(self) -> Literal["native", "torch", "numpy"]:
        return "torch"

    @property
    def gpu_bytes(self) -> int | None:
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)

    @property
    def numerics(self) -> str:
        return f"torch {self.device.type} {self.dtype}"

    def from_numpy(self, array: npt.NDArray[Any], table: bool = False) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            bits = torch.from_numpy(np.array(array).view(np.uint16))
            tensor = bits.view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(np.array(array))
        return tensor.to(self.device, self.dtype)

    def from_adapter(self, matrix: npt.NDArray[Any]) -> Tensor:
        return self.from_numpy(matrix)

    def to_numpy(self, array: Tensor) -> npt.NDArray[Any]:
        plain = array.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:
            bits: npt.NDArray[Any] = plain.view(torch.uint16).numpy().copy()
            return bits.view(ml_dtypes.bfloat16)
        result: npt.NDArray[Any] = plain.numpy().copy()
        return result

    def embed(self, table: Tensor, token_ids: Tensor | IntArray) -> Tensor:
        return F.embedding(self._integers(token_ids), table)

    def rotary(
        self, inverse_frequencies: FloatArray, positions: Tensor | IntArray, scale: float
    ) -> Rotary:
        frequencies = torch.from_numpy(inverse_frequencies).to(self.device)
        places = self._integers(positions)
        angles = places.float()[..., None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        if (positions >= WIDE_POSITIONS).any():  # NumPy's are asked here: no wait for a device
            wide = places >= WIDE_POSITIONS
            angles = places[wide][:, None].double() * frequencies
            cos[wide], sin[wide] = angles.cos().float(), angles.sin().float()
        return Rotary(cos * scale, sin * scale)

    def norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x = x_TD.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return weight_D.to(self.dtype) * normed.to(self.dtype)

    def norm_linear(
        self,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        linears: Sequence[Linear],
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> tuple[Tensor, ...]:
        normed = self.norm(x_TD, norm_D, eps)
        deltas = deltas or [()] * len(linears)
        return tuple(
            self.linear(normed, one, delta) for one, delta in zip(linears, deltas, strict=True)
        )

    def linear(self, x_TD: Tensor, linear: Linear, delta: Sequence[LowRank] = ()) -> Tensor:
        """`x W^T`, `[T, N]`, and adapters'; x is rotated first where the weight was."""
        x = hadamard_128(x_TD) if linear.rotated else x_TD
        product = F.linear(x.to(self.dtype), linear.weight.to(self.dtype))
        for one in delta:
            rows = self._integers(one.rows)
            middle = F.linear(x_TD[rows].to(self.dtype), one.down.to(self.dtype))
            product = product.index_add(0, rows, F.linear(middle, one.up.to(self.dtype)))
        return product

    def qk_norm_rotary(
        self,
        query_TN: Tensor,
        key_TN: Tensor,
        query_norm_K: Tensor,
        key_norm_K: Tensor,
        eps: float,
        rotary: Rotary,
    ) -> tuple[Tensor, Tensor]:
        head_dim = query_norm_K.shape[0]
        query_THK = self.norm(_heads(query_TN, head_dim), query_norm_K, eps)
        key_TGK = self.norm(_heads(key_TN, head_dim), key_norm_K, eps)
        query_QTHK = _rotate(query_THK[None], rotary.cos, rotary.sin)
        key_TGK = _rotate(key_TGK, rotary.cos[0], rotary.sin[0])
        return query_QTHK, key_TGK

    def linear_residual(
        self, x_TN: Tensor, linear: Linear, residual_TD: Tensor, delta: Sequence[LowRank] = ()
    ) -> Tensor:
        return residual_TD + self.linear(x_TN, linear, delta)

    def gated_mlp(
        self,
        residual_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        gate: Linear,
        up: Linear,
        down: Linear,
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> Tensor:
        delta_gate, delta_up, delta_down = deltas or ((), (), ())
        gated, upper = self.norm_linear(
            residual_TD, norm_D, eps, (gate, up), (delta_gate, delta_up)
        )
        return self.linear_residual(F.silu(gated) * upper, down, residual_TD, delta_down)

    def select_rows(self, x_TD: Tensor, rows: Tensor | IntArray) -> Tensor:
        return x_TD[self._integers(rows)]

    def new_pool(self, layers: int, kv_heads: int, head_dim: int, pages: int) -> TorchPages:
        return TorchPages(layers, kv_heads, head_dim, pages, self.device, self.dtype)

    def cached_attention(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> CachedAttention:
        return CachedAttention(chunks, patterns, slopes)

    def head(self, hidden_RD: Tensor, head: Linear, request: HeadRequest) -> HeadResult:
        return select_tokens(self.linear(hidden_RD, head).float(), request)

    def token_logprobs(
        self, hidden_RD: Tensor, head: Linear, targets: IntArray, num_top: int
    ) -> HeadResult:
        return score_targets(self.linear(hidden_RD, head).float(), targets, num_top)

    def _integers(self, values: Tensor | IntArray) -> Tensor:
        if isinstance(values, Tensor):
            return values
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _heads(x_TN: Tensor, head_dim: int) -> Tensor:
    """`[T, N]` as heads `[T, N / head_dim, head_dim]`."""
    return x_TN.reshape(*x_TN.shape[:-1], x_TN.shape[-1] // head_dim, head_dim)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + K/2) of x `[..., T, H, K]`; cos and sin are `[..., T, K/2]`."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def hadamard_128(x: Tensor) -> Tensor:
    """Each 128 of the last axis times the orthonormal Hadamard matrix (Sylvester order)."""
    blocks = _heads(x.float(), 128)
    for half in (1, 2, 4, 8, 16, 32, 64):
        pairs = blocks.reshape(*blocks.shape[:-1], 64 // half, 2, half)
        upper, lower = pairs[..., 0, :], pairs[..., 1, :]
        blocks = torch.stack((upper + lower, upper - lower), dim=-2).flatten(-3)
    scale: float = 128**-0.5
    return (blocks * scale).flatten(-2).to(x.dtype)
