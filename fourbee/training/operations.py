"""TrainingOperations: the torch operations as training runs them, adapters within.

The same functions as `TorchOperations`, with backward passes written by hand: they keep what cannot
be made again cheaply, work in place, and need half of the memory of what autograd would keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourbee.kernels.operations import Linear, LowRank, Rotary
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training import rows
from fourbee.training.lora import AdaptedLinear
from fourbee.training.products import product


class TrainingOperations(TorchOperations):
    """`TorchOperations`, quicker with gradients; linear maps may have adapters in training."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        rows.follow_threads()

    def norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        normed: Tensor = _Norm.apply(x_TD, weight_D, eps, self.dtype)  # type: ignore[no-untyped-call]
        return normed

    def linear(self, x_TD: Tensor, linear: Linear, delta: Sequence[LowRank] = ()) -> Tensor:
        if linear.rotated or delta:
            total = super().linear(x_TD, linear, delta)
        else:
            total = self._product(x_TD, linear.weight)
        if isinstance(linear, AdaptedLinear):
            middle = self._product(x_TD, linear.down)
            total = total + linear.scale * self._product(middle, linear.up)
        return total

    def _product(self, x_TD: Tensor, weight_ND: Tensor | None) -> Tensor:
        product_TN: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x_TD, weight_ND, self.dtype
        )
        return product_TN

    def qk_norm_rotary(
        self,
        query_TN: Tensor,
        key_TN: Tensor,
        query_norm_K: Tensor,
        key_norm_K: Tensor,
        eps: float,
        rotary: Rotary,
    ) -> tuple[Tensor, Tensor]:
        assert len(rotary.cos) == 1, "training has one variant of the queries"
        cos, sin = rotary.cos[0], rotary.sin[0]
        query_THK, key_TGK = (
            _NormRotary.apply(x_TN, weight_K, cos, sin, eps)  # type: ignore[no-untyped-call]
            for x_TN, weight_K in ((query_TN, query_norm_K), (key_TN, key_norm_K))
        )
        return query_THK[None], key_TGK

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
        if deltas or down.rotated or isinstance(down, AdaptedLinear):
            return super().gated_mlp(residual_TD, norm_D, eps, gate, up, down, deltas)
        gated, upper = self.norm_linear(residual_TD, norm_D, eps, (gate, up))
        lowered: Tensor = _GatedProduct.apply(  # type: ignore[no-untyped-call]
            gated, upper, down.weight, self.dtype
        )
        return residual_TD + lowered


class _Product(torch.autograd.Function):
    """`x W^T` in the compute type; a copy of the weight in that type is not kept."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ND: Tensor, dtype: torch.dtype) -> Tensor:
        x = x_TD.to(dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_ND)
        ctx.x_dtype = x_TD.dtype
        return product(x, weight_ND.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad_x = _grad_input(grads[0], weight).to(ctx.x_dtype) if needed[0] else None
        return grad_x, _grad_weight(grads[0], x, weight) if needed[1] else None, None


class _GatedProduct(torch.autograd.Function):
    """`(silu(gate) * up) W^T`; what is multiplied is made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, gate_TF: Tensor, up_TF: Tensor, weight_DF: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF, weight_DF)
        return product(rows.gated(gate_TF, up_TF), weight_DF.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        gate, up, weight = ctx.saved_tensors
        inner = _grad_input(grads[0], weight)
        grad_gate, grad_up, activated = rows.gated_gradient(inner, gate, up)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = _grad_weight(grads[0], activated, weight)
        return grad_gate, grad_up, grad_weight, None


class _Norm(torch.autograd.Function):
    """RMSNorm; what its backward pass needs beside its input is made again."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        return rows.norm(x_TD, weight_D, eps, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        return *rows.norm_gradient(grads[0], x, weight, ctx.eps), None, None


class _NormRotary(torch.autograd.Function):
    """RMSNorm of each head, then rotary positions: `[T, N]` to `[T, N / K, K]`."""

    @staticmethod
    def forward(
        ctx: Any, x_TN: Tensor, weight_K: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x_TN, weight_K, cos, sin)
        ctx.eps = eps
        return rows.norm_rotary(x_TN, weight_K, cos, sin, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, cos, sin = ctx.saved_tensors
        gradients = rows.norm_rotary_gradient(grads[0], x, weight, cos, sin, ctx.eps)
        return *gradients, None, None, None


def _grad_input(grad_TN: Tensor, weight_ND: Tensor) -> Tensor:
    return product(grad_TN, weight_ND.to(grad_TN.dtype).T)


def _grad_weight(grad_TN: Tensor, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    gradient: Tensor = product(grad_TN.T, x_TD.T).to(weight_ND.dtype)
    return gradient
