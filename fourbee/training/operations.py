"""TrainingOperations: the torch operations as training runs them, adapters within."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fourbee.kernels.operations import Linear, LowRank
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.lora import AdaptedLinear


class TrainingOperations(TorchOperations):
    """`TorchOperations` whose linear maps may have adapters that are being trained."""

    def linear(self, x_TD: Tensor, linear: Linear, delta: Sequence[LowRank] = ()) -> Tensor:
        product = super().linear(x_TD, linear, delta)
        if isinstance(linear, AdaptedLinear):
            assert linear.down is not None and linear.up is not None
            x = x_TD.to(self.dtype)
            middle = F.linear(x, linear.down.to(self.dtype))
            product = product + linear.scale * F.linear(middle, linear.up.to(self.dtype))
        return product
