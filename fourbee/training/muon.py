"""Muon with its iteration in float32 on a CPU, where bfloat16 may be emulated.

torch's own iterates in bfloat16: on a processor without such products (Zen 3, say) an update of a
small network then takes twelve times as long. Its state, so its checkpoints, are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of the iteration (Jordan et al. 2024): its polynomial and how often it is applied.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_STEPS = 5
_LEAST_NORM = 1e-7


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov's momentum and steps as large as AdamW's.

    So that one schedule serves both (Liu et al. 2025, arXiv 2502.16982, section 2.2). Matrices
    alone, `[N, D]`; sparse and complex ones are not known.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "losses are not computed again"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(buffer, group["momentum"]))
                size = 0.2 * math.sqrt(max(weight.shape))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * size)


def orthogonal(matrix_ND: Tensor) -> Tensor:
    """About the nearest orthogonal matrix: singular values of 0.7 to 1.2, by Newton-Schulz."""
    wide = matrix_ND if matrix_ND.device.type == "cpu" else matrix_ND.bfloat16()
    if len(wide) > wide.shape[1]:
        turned: Tensor = orthogonal(matrix_ND.T).T
        return turned
    x: Tensor = wide / wide.norm().clamp(min=_LEAST_NORM)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(
            x, torch.addmm(gram, gram, gram, beta=_CUBIC, alpha=_QUINTIC), x, beta=_LINEAR
        )
    return x
