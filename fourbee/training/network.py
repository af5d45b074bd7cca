"""TrainableQwen3: the parameters of `model/qwen3.py` as a torch module, and nothing else.

Its forward is the same pure function that serves; the module exists because optimizers, checkpoints
and sharding want parameters with names. Names are the checkpoint's. With LoRA the checkpoint's
parameters are frozen and adapters are trained; a reward model has one vector more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourbee.kernels.operations import Attention, Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import BlockWeights, Qwen3Weights, RunBlock, block_forward, forward
from fourbee.model.weights import LINEARS, tensor_shapes, weights_tree
from fourbee.training.lora import AdaptedLinear, LoraSettings, adapter_parameters

# A reward model's vector, named as in transformers' models of sequence classification.
SCORE = "score.weight"
HEAD = "lm_head.weight"


class TrainableQwen3(nn.Module):
    """Float32 parameters, initialised as Qwen3: normal(0, initializer_range), norms at one."""

    def __init__(
        self,
        config: Qwen3Config,
        seed: int = 0,
        lora: LoraSettings | None = None,
        scored: bool = False,
        frozen: torch.dtype = torch.float32,
    ) -> None:
        """`scored`: with a reward model's vector, drawn with variance 1 / (D + 1) (Stiennon et al.
        2020, arXiv 2009.01325, appendix B). `frozen`: the type of the layers' matrices with LoRA.
        """
        super().__init__()
        self.config = config
        self.lora = lora
        generator = torch.Generator().manual_seed(seed)
        shapes = tensor_shapes(config)
        parameters: dict[str, nn.Parameter] = {}
        for name, shape in shapes.items():
            matrix = len(shape) > 1
            # The embedding's type is that of the residual stream, which stays float32.
            narrow = lora is not None and matrix and ".layers." in name
            dtype = frozen if narrow else torch.float32
            # A reward model has no use for a head, and so no gradient of it.
            trained = lora is None and not (scored and name == HEAD)
            parameter = nn.Parameter(torch.ones(shape, dtype=dtype), requires_grad=trained)
            if matrix:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
            parameters[name] = parameter
        if scored:
            deviation = (config.hidden_size + 1) ** -0.5
            score = torch.empty(1, config.hidden_size).normal_(0, deviation, generator=generator)
            parameters[SCORE] = nn.Parameter(score)
        if lora is not None:
            parameters |= adapter_parameters(shapes, lora, seed)
        self.by_name = nn.ParameterDict({n.replace(".", "/"): p for n, p in parameters.items()})
        self.run_block: RunBlock | None = None  # what runs a layer, if not `block_forward` itself
        self._adapter: Mapping[str, Tensor] | None = None  # instead of its own, for a while

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.lora is not None

    def all_tensors(self) -> dict[str, Tensor]:
        """Every parameter by name: the checkpoint's, adapters', the reward's."""
        return {name.replace("/", "."): tensor for name, tensor in self.by_name.items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters by their names in the checkpoint."""
        tensors = self.all_tensors()
        return {name: tensors[name] for name in tensor_shapes(self.config)}

    def trained_tensors(self) -> dict[str, Tensor]:
        """The parameters that an optimizer moves."""
        return {name: one for name, one in self.all_tensors().items() if one.requires_grad}

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapters' matrices; empty without LoRA."""
        return {name: one for name, one in self.all_tensors().items() if ".lora_" in name}

    def merged_tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors with the adapters' products added, for whoever only reads."""
        tensors = self.named_tensors()
        if self.lora is None:
            return tensors
        adapter = self.adapter_tensors()
        with torch.no_grad():
            for name in tensors:
                stem = name.removesuffix(".weight")
                if f"{stem}.lora_A" in adapter:
                    product = adapter[f"{stem}.lora_B"] @ adapter[f"{stem}.lora_A"]
                    tensors[name] = tensors[name].float() + self.lora.scale * product
        return tensors

    def weights(self) -> Qwen3Weights:
        """The tree that `forward` takes; it holds the parameters themselves."""
        tree = weights_tree(self.config, self.named_tensors())
        if self.lora is None:
            return tree
        adapter = self.adapter_tensors() if self._adapter is None else self._adapter
        blocks = tuple(
            _adapted(layer, block, adapter, self.lora.scale)
            for layer, block in enumerate(tree.blocks)
        )
        return replace(tree, blocks=blocks)

    @contextmanager
    def adapted_by(self, adapter: Mapping[str, Tensor]) -> Iterator[None]:
        """The network with other adapters than its own; nothing changes without LoRA."""
        before, self._adapter = self._adapter, adapter
        try:
            yield
        finally:
            self._adapter = before

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        ops: TorchOperations,
    ) -> Tensor:
        """Final hidden states `[T, D]`."""
        weights = self.weights()
        hidden = forward(
            weights, token_ids_T, positions_T, attention, ops, run_block=self.run_block
        )
        final: Tensor = hidden.final
        return final

    def head(self) -> Linear:
        """The map from hidden states to logits."""
        return self.weights().head

    def score(self, hidden_RD: Tensor) -> Tensor:
        """A reward model's reward `[R]` of hidden states."""
        vector: Tensor = self.all_tensors()[SCORE][0]
        return hidden_RD.float() @ vector


def _adapted(
    layer: int, block: BlockWeights, adapter: Mapping[str, Tensor], scale: float
) -> BlockWeights:
    """A layer with its adapters."""
    linears: dict[str, Linear] = {}
    for field, name in LINEARS.items():
        stem = f"model.layers.{layer}.{name}"
        if f"{stem}.lora_A" in adapter:
            plain: Linear = getattr(block, field)
            down, up = adapter[f"{stem}.lora_A"], adapter[f"{stem}.lora_B"]
            linears[field] = AdaptedLinear(plain.weight, plain.rotated, down, up, scale)
    return replace(block, **linears)


def recomputed_block(*arguments: Any) -> Tensor:
    """A layer whose activations are made again in the backward pass (Chen et al. 2016).

    Of a layer only its input is kept: memory for a third more arithmetic, and the same bits.
    """
    return cast(Tensor, checkpoint(block_forward, *arguments, use_reentrant=False))
