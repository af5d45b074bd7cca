"""TrainableQwen3: the parameters of `model/qwen3.py` as a torch module, and nothing else.

Its forward is the same pure function that serves; the module exists because optimizers, checkpoints
and sharding want parameters with names. Names are the checkpoint's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourbee.kernels.operations import Attention, Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import Qwen3Weights, forward
from fourbee.model.weights import tensor_shapes, weights_tree


class TrainableQwen3(nn.Module):
    """Float32 parameters, initialised as Qwen3: normal(0, initializer_range), norms at one."""

    def __init__(self, config: Qwen3Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.by_name = nn.ParameterDict()
        for name, shape in tensor_shapes(config).items():
            parameter = nn.Parameter(torch.ones(shape))
            if len(shape) > 1:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
            self.by_name[name.replace(".", "/")] = parameter

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters by their names in the checkpoint."""
        return {name.replace("/", "."): tensor for name, tensor in self.by_name.items()}

    def weights(self) -> Qwen3Weights:
        """The tree that `forward` takes; it holds the parameters themselves."""
        return weights_tree(self.config, self.named_tensors())

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        ops: TorchOperations,
    ) -> Tensor:
        """Final hidden states `[T, D]`."""
        final: Tensor = forward(self.weights(), token_ids_T, positions_T, attention, ops).final
        return final

    def head(self) -> Linear:
        """The map from hidden states to logits."""
        return self.weights().head
