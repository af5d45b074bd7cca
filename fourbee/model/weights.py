"""Checkpoint names and shapes of Qwen3, and the tree of weights built from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fourbee.kernels.operations import Array, Linear
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import BlockWeights, Qwen3Weights

# The linear maps of a layer: fields of `BlockWeights` and names in a checkpoint.
LINEARS: Mapping[str, str] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def tensor_shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this configuration holds, by name, in file order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.query_size, config.key_value_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (query, hidden),
            prefix + "self_attn.k_proj.weight": (key_value, hidden),
            prefix + "self_attn.v_proj.weight": (key_value, hidden),
            prefix + "self_attn.q_norm.weight": (config.head_dim,),
            prefix + "self_attn.k_norm.weight": (config.head_dim,),
            prefix + "self_attn.o_proj.weight": (hidden, query),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def largest_first(config: Qwen3Config) -> list[str]:
    """The names of `tensor_shapes` in the order in which memory peaks least when they are read."""
    shapes = tensor_shapes(config)
    return sorted(shapes, key=lambda name: -math.prod(shapes[name]))


def weights_tree(
    config: Qwen3Config,
    tensors: Mapping[str, Array],
    rotated: bool = False,
    head_rotated: bool = False,
) -> Qwen3Weights:
    """The tree of `model/qwen3.py` over tensors named as in a checkpoint; copies nothing."""

    embedding = tensors["model.embed_tokens.weight"]
    head = embedding if config.tie_word_embeddings else tensors["lm_head.weight"]
    return Qwen3Weights(
        config=config,
        embedding=embedding,
        blocks=tuple(
            block_weights(layer, tensors, rotated) for layer in range(config.num_hidden_layers)
        ),
        final_norm=tensors["model.norm.weight"],
        head=Linear(head, head_rotated),
    )


def block_weights(layer: int, tensors: Mapping[str, Array], rotated: bool = False) -> BlockWeights:
    """One layer of that tree."""
    prefix = f"model.layers.{layer}."

    linears = {
        field: Linear(tensors[f"{prefix}{name}.weight"], rotated) for field, name in LINEARS.items()
    }
    return BlockWeights(
        input_norm=tensors[prefix + "input_layernorm.weight"],
        query_norm=tensors[prefix + "self_attn.q_norm.weight"],
        key_norm=tensors[prefix + "self_attn.k_norm.weight"],
        post_norm=tensors[prefix + "post_attention_layernorm.weight"],
        **linears,
    )


def named_tensors(weights: Qwen3Weights) -> dict[str, Array]:
    """The inverse of `weights_tree`: tensors by their names in a checkpoint, in file order."""
    names = list(tensor_shapes(weights.config))
    # A tree of the same form whose arrays are their own names.
    labels = weights_tree(weights.config, {name: name for name in names})
    tensors: dict[str, Array] = {}
    for labelled, node in zip((labels, *labels.blocks), (weights, *weights.blocks), strict=True):
        for key, label in vars(labelled).items():
            value = getattr(node, key)
            if isinstance(label, Linear):
                assert not value.rotated, "a rotated weight is not what a checkpoint holds"
                label, value = label.weight, value.weight
            if isinstance(label, str):
                tensors[label] = value
    return {name: tensors[name] for name in names}
