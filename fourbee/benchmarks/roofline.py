"""The limits of this machine, and how near the work comes to them.

Decoding alone is held by reading the weights and the keys; prefill by integer products. Only the
products of the layers' matrices count as work here, so that the share is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fourbee.benchmarks.pace import layer_products
from fourbee.benchmarks.shapes import shape_config
from fourbee.benchmarks.work import Work
from fourbee.engine.ledger import page_bytes
from fourbee.kernels import _native
from fourbee.kernels.attention_pattern import PAGE_KEYS

_BYTES = 1 << 30
_ROUNDS = 20  # some 20 ms each


@dataclass(frozen=True)
class Limits:
    """The best of some rounds, all threads together: bytes and multiply-adds a second."""

    read_bytes: float
    int8: float
    bf16: float


def limits() -> Limits:
    """Measures the machine as it is now, for a second or two."""
    data = np.ones(_BYTES, dtype=np.uint8)
    return Limits(
        max(_native.read_bandwidth(data) for _ in range(_ROUNDS)),
        max(_native.peak_int8(10_000_000) for _ in range(_ROUNDS)),
        max(_native.peak_bf16(10_000_000) for _ in range(_ROUNDS)),
    )


def best(*several: Limits) -> Limits:
    """The highest of some measurements of each."""
    return Limits(
        max(one.read_bytes for one in several),
        max(one.int8 for one in several),
        max(one.bf16 for one in several),
    )


def share_of_limit(work: Work, shape: str, weight_bytes: float, rate: float, most: Limits) -> float:
    """The share of the limit that a rate in tokens a second comes to."""
    config = shape_config(shape)
    layers = config.num_hidden_layers
    if work.kind == "decode":
        keys = work.depth * page_bytes(config, "int8") / PAGE_KEYS
        return (weight_bytes + work.batch * keys) * rate / work.batch / most.read_bytes
    attention = 2 * config.query_size * (work.depth + work.tokens / 2)
    return layers * (layer_products(config) + attention) * rate / most.int8
