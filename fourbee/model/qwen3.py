"""The Qwen3 network, once: a pure function over a tree of weights.

Training, the CPU engine and the GPU engine all call `forward`; they differ in the operations and
the attention that they pass. This file imports no array library and knows no cache, no batch and
no loss. Architecture: Qwen3 technical report (arXiv 2505.09388), section 2: pre-RMSNorm, grouped
queries with a norm on each query and key head, rotary positions, SwiGLU, no biases.

Shape legend as in `kernels/operations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fourbee.kernels.operations import Array, Attention, Linear, Operations, Rotary
from fourbee.model.config import Qwen3Config
from fourbee.model.positions import position_scheme


@dataclass(frozen=True)
class BlockWeights:
    """Weights of one layer; `[N, D]` for linears, `[D]` or `[K]` for norms."""

    input_norm: Array
    query: Linear
    key: Linear
    value: Linear
    query_norm: Array
    key_norm: Array
    output: Linear
    post_norm: Array
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Qwen3Weights:
    """Weights of the whole network and the configuration that gives them their meaning."""

    config: Qwen3Config
    embedding: Array
    blocks: tuple[BlockWeights, ...]
    final_norm: Array
    head: Linear  # shares the embedding's array when tied


RunBlock = Callable[..., Array]


@dataclass(frozen=True)
class Hidden:
    """What `forward` returns: final states, and the inputs of the layers that were tapped."""

    final: Array
    taps: dict[int, Array]


def forward(
    weights: Qwen3Weights,
    token_ids_T: Array,
    positions: Array,
    attention: Attention,
    ops: Operations,
    rows: Array | None = None,
    taps: Collection[int] = (),
    run_block: RunBlock | None = None,
) -> Hidden:
    """Final hidden states `[T, D]`, normed, ready for the head.

    `positions` are `[T]`, or `[Q, T]` where attention asks for several query variants.
    `rows` `[R]`: which rows go on after the last layer's attention (the result is `[R, D]` then).
    `taps`: layers whose input `[T, D]` is also returned (drafters, embeddings).
    `run_block`: what runs a layer instead of `block_forward` itself, with the same arguments:
    training makes activations again in the backward pass.
    """
    run_block = run_block or block_forward
    config = weights.config
    rotary = position_scheme(config).rotary(positions, ops)
    hidden = ops.embed(weights.embedding, token_ids_T)
    tapped: dict[int, Array] = {}
    last = len(weights.blocks) - 1
    for layer, block in enumerate(weights.blocks):
        if layer in taps:
            tapped[layer] = hidden
        keep = rows if layer == last else None
        hidden = run_block(layer, block, config, hidden, rotary, attention, ops, keep)
    return Hidden(ops.norm(hidden, weights.final_norm, config.rms_norm_eps), tapped)


def block_forward(
    layer: int,
    block: BlockWeights,
    config: Qwen3Config,
    hidden_TD: Array,
    rotary: Rotary,
    attention: Attention,
    ops: Operations,
    rows: Array | None = None,
) -> Array:
    """One layer, `[T, D]` to `[T, D]`; with `rows`, only those go on after attention."""
    eps = config.rms_norm_eps
    projections = (block.query, block.key, block.value)
    query_TN, key_TN, value_TN = ops.norm_linear(hidden_TD, block.input_norm, eps, projections)
    query_QTHK, key_TGK = ops.qk_norm_rotary(
        query_TN, key_TN, block.query_norm, block.key_norm, eps, rotary
    )
    value_TGK = value_TN.reshape(-1, config.num_key_value_heads, config.head_dim)
    context_TN = attention(layer, query_QTHK, key_TGK, value_TGK)
    if rows is not None:
        context_TN = ops.select_rows(context_TN, rows)
        hidden_TD = ops.select_rows(hidden_TD, rows)
    hidden_TD = ops.linear_residual(context_TN, block.output, hidden_TD)
    return ops.gated_mlp(hidden_TD, block.post_norm, eps, block.gate, block.up, block.down)
