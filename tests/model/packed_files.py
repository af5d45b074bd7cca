"""Packed checkpoints made in plain Python, bit by bit from the definition of their formats.

Nothing here calls the code under test: `pack_bits` is given the place of every field, and
`dequantised` is the formula in two loops.
"""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fourbee.model.checkpoint_files import check_weights, load_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import named_tensors, tensor_shapes

from .conftest import ArrayOperations, message, random_tensors

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDE = Qwen3Config(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
)


def is_linear(name: str) -> bool:
    return name.split(".")[-2] in LINEAR


def int32(words: list[list[int]]) -> np.ndarray:
    """Unsigned words as the int32 array that files hold."""
    signed = [[word - 2**32 if word >= 2**31 else word for word in row] for row in words]
    return np.array(signed, dtype=np.int32)


def pack_bits(
    values: np.ndarray,
    bits: int,
    shape: tuple[int, int],
    place: Callable[[int, int], tuple[int, int, int]],
) -> np.ndarray:
    """Int32 words `shape`; `place(row, column)` is a value's word row, word column, first bit."""
    words = [[0] * shape[1] for _ in range(shape[0])]
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            word_row, word_column, first = place(row, column)
            for bit in range(bits):
                if (int(values[row, column]) >> bit) & 1:
                    words[word_row][word_column] |= 1 << (first + bit)
    return int32(words)


def dequantised(q_KN, z_GN, s_GN, group_K) -> np.ndarray:
    """`[N, K]`: `(q - z) * s`, exact in Python's doubles, and then in float32 as it is."""
    inputs, outputs = q_KN.shape
    dense = np.zeros((outputs, inputs), dtype=np.float32)
    for k in range(inputs):
        for n in range(outputs):
            group = group_K[k]
            difference = int(q_KN[k, n]) - int(z_GN[group, n])
            exact = difference * float(s_GN[group, n])
            assert float(np.float32(exact)) == exact
            dense[n, k] = exact
    return dense


def write_packed(
    folder: Path, config: Qwen3Config, settings: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Path:
    """A folder with this `quantization_config`, written by the safetensors library."""
    folder.mkdir(exist_ok=True)
    values = config.to_json() | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors")
    return folder


def refusal(
    folder: Path, config: Qwen3Config, settings: dict[str, Any], tensors: dict[str, np.ndarray]
) -> str:
    """What is wrong with these tensors: loading says it, and so does the check before it."""
    write_packed(folder, config, settings, tensors)
    text = message(load_weights, folder, ArrayOperations())
    assert text == message(check_weights, folder)
    return text.removeprefix(f"{folder}: tensors ")


def packed_model(
    config: Qwen3Config,
    pack: Callable[[str, tuple[int, ...]], tuple[dict[str, np.ndarray], np.ndarray]],
    keeps: Callable[[str], bool] = lambda name: False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Stored and dense tensors: `pack(name, shape)` gives the parts and the matrix of a linear."""
    stored, dense = {}, {}
    for name, array in random_tensors(config).items():
        if is_linear(name) and not keeps(name):
            parts, array = pack(name, array.shape)
        else:
            parts = {name: array}
        stored |= parts
        dense[name] = array
    return stored, dense


def assert_loads(folder: Path, config: Qwen3Config, dense: dict[str, np.ndarray]) -> None:
    """Exactly these dense tensors, of a model that no longer knows how it was packed."""
    weights = load_weights(folder, ArrayOperations())
    assert weights.config == config
    found = named_tensors(weights)
    assert found.keys() == tensor_shapes(config).keys()
    for name, array in found.items():
        assert array.dtype == np.float32 and np.array_equal(array, dense[name]), name


def peak_over_size(folder: Path) -> float:
    """Peak of memory while loading as bfloat16, over the size of the loaded weights."""
    load_weights(folder, ArrayOperations("bfloat16"))  # what is imported and cached on first use
    tracemalloc.start()
    try:
        weights = load_weights(folder, ArrayOperations("bfloat16"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak / sum(array.nbytes for array in named_tensors(weights).values())
