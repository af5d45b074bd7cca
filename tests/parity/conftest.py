"""Random Qwen3 models made by transformers, and the same weights as our tree."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from transformers import Qwen3Config as TheirConfig
from transformers import Qwen3ForCausalLM

from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.weights import weights_tree


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    yield
    gc.collect()  # modules hold cycles, and these models are large


def shape(
    hidden: int, inner: int, heads: int, layers: int, vocabulary: int, tied: bool, theta: float
) -> Qwen3Config:
    """A Qwen3 of these sizes with 8 key-value heads of 128."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262_144,
        rope_theta=theta,
        tie_word_embeddings=tied,
        initializer_range=0.05,  # wider than the usual 0.02: logits that differ from one another
        torch_dtype="float32",
    )


def theirs(config: Qwen3Config, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    """A random model of transformers, its norms drawn too."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(TheirConfig.from_dict(config.to_json())).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        # Not `model.to`: it would round the rotary frequencies, too.
        parameter.data = parameter.data.to(dtype)
    return model


def tensors_of(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def ours(config: Qwen3Config, model: Qwen3ForCausalLM) -> tuple[Qwen3Weights, TorchOperations]:
    """Our tree over the very same tensors."""
    return weights_tree(config, tensors_of(model)), TorchOperations("cpu", torch.float32)
