"""A tiny random Qwen3 in float32, its operations and a tokenizer as large as its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fourbee.foundation.errors import UsageError
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.weights import tensor_shapes, weights_tree
from fourbee.text.bpe import train_bpe
from fourbee.text.tokenizer import Tokenizer

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def config() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        torch_dtype="float32",
    )


@pytest.fixture(scope="package")
def ops() -> TorchOperations:
    return TorchOperations("cpu", torch.float32)


@pytest.fixture(scope="package")
def weights(config: Qwen3Config, ops: TorchOperations) -> Qwen3Weights:
    """Random, large enough that its answers wander instead of repeating one token."""
    random = np.random.default_rng(7)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = random.normal(0, 0.15, shape) if len(shape) == 2 else np.ones(shape)
        tensors[name] = ops.from_numpy(values.astype(np.float32))
    return weights_tree(config, tensors)


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    """At most 300 tokens of byte-level BPE; no end-of-text token, so that answers are long."""
    backend = train_bpe(["the token of the reader reads the model the reader"] * 8, 300)
    return Tokenizer(backend, chat_template=CHATML)


@pytest.fixture
def error_of():
    """The text and the parameter of the UsageError that a call raises."""

    def call(function, *args, **kwargs) -> tuple[str, str | None]:
        with pytest.raises(UsageError) as caught:
            function(*args, **kwargs)
        return str(caught.value), caught.value.parameter

    return call
