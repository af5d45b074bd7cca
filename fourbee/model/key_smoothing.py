"""Key smoothing: the same scores from keys that round well.

Some channels of real keys are many times larger than the others, since the weight of the keys' norm
is; with one scale a key, the small channels then lose their bits. The norm weights of queries and
keys are scaled against each other, `q s` and `k / s`: scores stay the same (as SmoothQuant does for
linears, Xiao et al. 2022, arXiv 2211.10438, but static: nothing depends on a sequence, so prefixes
can be shared). The two channels of a rotary pair have one factor, so that it commutes with the
rotation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fourbee.kernels.operations import FloatArray, Operations
from fourbee.model.qwen3 import BlockWeights, Qwen3Weights


def smooth_keys(weights: Qwen3Weights, ops: Operations) -> Qwen3Weights:
    """The same network with smoothed keys; matrices are shared with the one given."""

    def smoothed(block: BlockWeights) -> BlockWeights:
        query, key = smoothed_norms(
            *(ops.to_numpy(one).astype(np.float32) for one in (block.query_norm, block.key_norm))
        )
        return replace(block, query_norm=ops.from_numpy(query), key_norm=ops.from_numpy(key))

    return replace(weights, blocks=tuple(smoothed(block) for block in weights.blocks))


def smoothed_norms(query_norm: FloatArray, key_norm: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The norm weights `[K]` of queries and keys, of like size channel by channel."""
    query, key = (
        np.maximum(*np.split(np.abs(norm.astype(np.float64)), 2)) for norm in (query_norm, key_norm)
    )
    factors = np.ones_like(query)
    usable = (query > 0) & (key > 0)
    factors[usable] = np.sqrt(key[usable] / query[usable])
    twice = np.concatenate([factors, factors])
    return (query_norm * twice).astype(np.float32), (key_norm / twice).astype(np.float32)
