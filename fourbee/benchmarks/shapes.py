"""The published Qwen3 shapes with random weights, packed: speed does not depend on values.

Nothing is read or written: a 4B in int4 is ready in seconds.
"""

from __future__ import annotations

import numpy as np

from fourbee.foundation.errors import UsageError
from fourbee.kernels.native_ops import NativeOperations, open_native
from fourbee.kernels.operations import FloatArray, Linear
from fourbee.kernels.packed import BLOCK_ROWS, GROUP, Kind, PackedMatrix, block_bytes
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import BlockWeights, Qwen3Weights

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
    config = shape_config(name)
    ops = open_native("bfloat16" if quantize == "none" else "float32", quantize, threads)
    assert isinstance(ops, NativeOperations)
    packing, rng = ops.packing, np.random.default_rng(0)

    def matrix(rows: int, columns: int, kind: Kind, rotated: bool) -> Linear:
        made = random_matrix(rng, rows, columns, kind, rotated)
        return Linear(ops.from_packed(made), rotated)

    def linear(rows: int, columns: int) -> Linear:
        return matrix(rows, columns, packing.layers, packing.rotated)

    def ones(width: int) -> FloatArray:
        return np.ones(width, dtype=np.float32)

    hidden, inner, query, key = (
        config.hidden_size, config.intermediate_size, config.query_size, config.key_value_size,
    )  # fmt: skip
    blocks = tuple(
        BlockWeights(
            ones(hidden), linear(query, hidden), linear(key, hidden), linear(key, hidden),
            ones(HEAD_DIM), ones(HEAD_DIM), linear(hidden, query), ones(hidden),
            linear(inner, hidden), linear(inner, hidden), linear(hidden, inner),
        )
        for _ in range(config.num_hidden_layers)
    )  # fmt: skip
    table = matrix(VOCABULARY, hidden, packing.tables, False)
    tied = config.tie_word_embeddings
    head = table if tied else matrix(VOCABULARY, hidden, packing.tables, False)
    return Qwen3Weights(config, table.weight, blocks, ones(hidden), head), ops


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, kind: Kind, rotated: bool
) -> PackedMatrix:
    """Random integers with one small scale: rows keep their size from layer to layer.

    bfloat16 (kind "bf16") has random signs and fractions with one exponent instead.
    """
    group = 0 if kind == "bf16" else GROUP
    shape = -(-rows // BLOCK_ROWS), block_bytes(kind, columns, group)
    data = rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "bf16":
        exponent = 127 + round(np.log2(1 / (1.5 * np.sqrt(columns))))
        words = data.view(np.uint16)
        words &= 0x807F
        words |= exponent << 7
        return PackedMatrix(kind, rows, columns, group, rotated, data)
    lines = GROUP * 16 * (8 if kind == "int8" else 4) // 8
    # Integers are evenly spread, of a size of about a third of their largest.
    scale = 1.7 / (128 if kind == "int8" else 8) / np.sqrt(columns)
    if kind == "int4c":
        groups = data[:, :-64].reshape(len(data), -1, lines + 32)
        groups[:, :, lines : lines + 16] = 255
        groups[:, :, lines + 16 :] = 8 * 16
        data[:, -64:] = np.full(16, scale / 255, np.float32).view(np.uint8)
    else:
        groups = data.reshape(len(data), -1, lines + 32)
        groups[:, :, lines:] = np.full(16, scale, np.float16).view(np.uint8)
    return PackedMatrix(kind, rows, columns, GROUP, rotated, data)


def weight_bytes(weights: Qwen3Weights) -> int:
    """Bytes that a decoding step reads of the weights: all matrices, a tied table once."""
    linears = [one for block in weights.blocks for one in vars(block).values()]
    matrices = [one.weight for one in linears if isinstance(one, Linear)] + [weights.head.weight]
    return sum(one.packed.data.nbytes for one in matrices)
