"""The published Qwen3 shapes with random weights, packed: speed does not depend on values.

Nothing is read or written: a 4B in int4 is ready in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from fourbee.engine.ledger import Setup, matrix_formats
from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Linear, PackedOperations
from fourbee.kernels.packed import GROUP, Kind, PackedMatrix, block_bytes
from fourbee.model.config import Qwen3Config
from fourbee.model.packed_format import PackedFormat
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.weights import tensor_shapes, weights_tree

if TYPE_CHECKING:
    from fourbee.kernels.native_ops import NativeOperations

# Layers, hidden and inner width, query and key-value heads, whether the head is the embedding.
SHAPES: dict[str, tuple[int, int, int, int, int, bool]] = {
    "0.6B": (28, 1024, 3072, 16, 8, True),
    "1.7B": (28, 2048, 6144, 16, 8, True),
    "4B": (36, 2560, 9728, 32, 8, True),
    "8B": (36, 4096, 12288, 32, 8, False),
    "tiny": (2, 256, 512, 4, 2, True),
}
HEAD_DIM, VOCABULARY, CONTEXT = 128, 151_936, 262_144


def shape_config(name: str) -> Qwen3Config:
    """The configuration of a shape; UsageError for one that is not known."""
    if name not in SHAPES:
        raise UsageError(f"shape = {name!r}: expected one of {', '.join(SHAPES)}", "shape")
    layers, hidden, inner, heads, kv_heads, tied = SHAPES[name]
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        rope_theta=5e6,
    )


def random_model(
    name: str, quantize: str, threads: int | None
) -> tuple[Qwen3Weights, NativeOperations]:
    """Random weights of a shape in the packing of `--quantize`, and the operations for them.

    Those of "none" are in bfloat16, as published.
    """
    from fourbee.kernels.native_ops import NativeOperations, open_native

    config = shape_config(name)
    dtype = "bfloat16" if quantize == "none" else "float32"
    ops = open_native(dtype, quantize, threads)
    assert isinstance(ops, NativeOperations)
    formats = matrix_formats(Setup(config, dtype=dtype, quantize=quantize))
    return random_weights(config, formats, ops), ops


def random_weights(
    config: Qwen3Config, formats: Mapping[str, PackedFormat], ops: PackedOperations
) -> Qwen3Weights:
    """Random matrices in these formats, by their names, and norms of ones."""
    rng = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return np.ones(shape, dtype=np.float32)
        form, (rows, columns) = formats[name], shape
        made = random_matrix(rng, rows, columns, form.kind, form.rotated, form.group)
        return ops.from_packed(made)

    tensors = {name: tensor(name, shape) for name, shape in tensor_shapes(config).items()}
    rotated = any(form.rotated for form in formats.values())
    return weights_tree(config, tensors, rotated)


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, kind: Kind, rotated: bool,
    group: int = GROUP,
) -> PackedMatrix:  # fmt: skip
    """Random numbers with one small scale: rows keep their size from layer to layer."""
    blocks = -(-rows // 16)
    if kind in ("f32", "bf16"):
        numbers = rng.random((blocks, columns * 16), dtype=np.float32) - np.float32(0.5)
        numbers *= np.float32(3.4 / np.sqrt(columns))
        floats = numbers if kind == "f32" else numbers.astype(ml_dtypes.bfloat16)
        return PackedMatrix(kind, rows, columns, 0, rotated, floats.view(np.uint8))
    data = rng.integers(0, 256, (blocks, block_bytes(kind, columns, group)), dtype=np.uint8)
    lines = group * 16 * (8 if kind == "int8" else 4) // 8
    # Integers are evenly spread, of a size of about a third of their largest.
    scale = 1.7 / (128 if kind == "int8" else 8) / np.sqrt(columns)
    if kind == "int4c":
        groups = data[:, :-64].reshape(blocks, -1, lines + 32)
        groups[:, :, lines : lines + 16] = 255
        groups[:, :, lines + 16 :] = 8 * 16
        data[:, -64:] = np.full(16, scale / 255, np.float32).view(np.uint8)
    else:
        tail = np.full(16, scale, np.float16)
        if kind == "int4a":
            tail = np.concatenate([tail, -8 * tail])
        groups = data.reshape(blocks, -1, lines + tail.nbytes)
        groups[:, :, lines:] = tail.view(np.uint8)
    return PackedMatrix(kind, rows, columns, group, rotated, data)


def weight_bytes(weights: Qwen3Weights) -> int:
    """Bytes that a decoding step reads of the weights: all matrices, a tied table once."""
    linears = [one for block in weights.blocks for one in vars(block).values()]
    matrices = [one.weight for one in linears if isinstance(one, Linear)] + [weights.head.weight]
    return sum(one.packed.data.nbytes for one in matrices)
