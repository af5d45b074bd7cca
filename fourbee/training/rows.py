"""What happens to rows between products, and its gradients: RMSNorm, rotary positions, SwiGLU.

Natively for float32 on a CPU, in one pass over memory each; in torch for other types, other devices
and where the kernels were not built. Products are not of this module (`products.py`), and nothing
here is known to autograd (`operations.py`).
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourbee.kernels.backends import native_built

native: Any = None
if native_built():
    from fourbee.kernels import _native as native


def follow_threads() -> None:
    """The kernels take as many threads as torch has now."""
    if native is not None and native.threads() != torch.get_num_threads():
        native.set_threads(torch.get_num_threads())


def norm(x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019) in float32, rounded to `dtype`."""
    if dtype == torch.float32 and are_native(x_TD, weight_D):
        out = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
        native.norm(_flat(x_TD), array_of(weight_D), eps, _flat(out))
        return out
    x = x_TD.float()
    return (x * _inverse_rms(x, eps)).to(dtype).mul_(weight_D.to(dtype))


def norm_gradient(
    grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight, in their types."""
    if are_native(grad_TD, x_TD, weight_D):
        grad_x = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
        grad_weight = torch.empty_like(weight_D)
        arrays = (_flat(grad_TD), _flat(grad_x), array_of(grad_weight))
        native.norm_gradient(_flat(x_TD), array_of(weight_D), eps, *arrays)
        return grad_x, grad_weight
    return _norm_gradient(grad_TD.float(), x_TD, weight_D, eps)


def norm_rotary(
    x_TN: Tensor, weight_K: Tensor, cos_TK: Tensor, sin_TK: Tensor, eps: float
) -> Tensor:
    """RMSNorm of each head, then rotary positions: `[T, N]` to `[T, N / K, K]`."""
    x_THK = x_TN.view(len(x_TN), -1, len(weight_K))
    if are_native(x_THK, weight_K, cos_TK, sin_TK):
        out = torch.empty_like(x_THK, memory_format=torch.contiguous_format)
        tables = (array_of(cos_TK), array_of(sin_TK))
        native.rotate_heads(array_of(x_THK), array_of(weight_K), eps, *tables, array_of(out))
        return out
    x = x_THK.float()
    normed = (x * _inverse_rms(x, eps)).mul_(weight_K.float())
    return _rotated(normed, cos_TK, sin_TK).to(x_TN.dtype)


def norm_rotary_gradient(
    grad_THK: Tensor, x_TN: Tensor, weight_K: Tensor, cos_TK: Tensor, sin_TK: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x, `[T, N]`, and of the weight, in their types."""
    x_THK = x_TN.view(grad_THK.shape)
    if are_native(grad_THK, x_THK, weight_K, cos_TK, sin_TK):
        grad_x = torch.empty_like(x_THK, memory_format=torch.contiguous_format)
        grad_weight = torch.empty_like(weight_K)
        arrays = (array_of(one) for one in (cos_TK, sin_TK, grad_THK, grad_x, grad_weight))
        native.head_gradient(array_of(x_THK), array_of(weight_K), eps, *arrays)
        return grad_x.view(x_TN.shape), grad_weight
    grad = _rotated(grad_THK.float(), cos_TK, -sin_TK)
    grad_x, grad_weight = _norm_gradient(grad, x_THK, weight_K, eps)
    return grad_x.view(x_TN.shape), grad_weight


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    if are_native(gate_TF, up_TF):
        out = torch.empty_like(gate_TF, memory_format=torch.contiguous_format)
        native.swiglu(*(array_of(one).reshape(-1) for one in (gate_TF, up_TF, out)))
        return out
    return F.silu(gate_TF).mul_(up_TF)


def gated_gradient(
    grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gate and of up, and the product again; all three may be overwritten."""
    tensors = (gate_TF, up_TF, grad_TF)
    if are_native(*tensors) and all(one.is_contiguous() for one in tensors):
        native.swiglu_gradient(*(array_of(one).reshape(-1) for one in tensors))
        torch.autograd.graph.increment_version(tensors)  # a second backward pass is refused
        return grad_TF, up_TF, gate_TF
    activated = F.silu(gate_TF)
    product = activated * up_TF
    grad_up = activated.mul_(grad_TF)
    grad_gate: Tensor = torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF)
    return grad_gate, grad_up, product


def are_native(*tensors: Tensor) -> bool:
    """Whether the kernels are there and take these."""
    return native is not None and all(
        one.dtype == torch.float32 and one.device.type == "cpu" for one in tensors
    )


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """Its numbers as the kernels take them: the memory itself where that is contiguous."""
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def _flat(tensor: Tensor) -> npt.NDArray[Any]:
    """All axes but the last as one."""
    return array_of(tensor).reshape(-1, tensor.shape[-1])


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Over the last axis, which stays."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide, weights = x.float(), weight.float()
    scale = _inverse_rms(wide, eps)
    normed = wide * scale
    weighed = grad * normed
    grad_weight = weighed.flatten(0, -2).sum(0)
    along = (weighed @ weights).div_(-x.shape[-1])[..., None]
    grad_x = (grad * weights).addcmul_(normed, along).mul_(scale)
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + K/2) of x `[T, H, K]`; cos and sin are `[T, K/2]`."""
    cos, sin = cos[:, None], sin[:, None]
    rotated = x * torch.cat((cos, cos), dim=-1)
    first, second = x.chunk(2, dim=-1)
    upper, lower = rotated.chunk(2, dim=-1)
    upper.addcmul_(second, sin, value=-1)
    lower.addcmul_(first, sin)
    return rotated
