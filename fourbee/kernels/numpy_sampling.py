"""From logits to tokens in NumPy: the same choices as `torch_sampling.py`, which says how.

Sorts no vocabulary: the likeliest are found by partition, as many of them as are needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fourbee.kernels.operations import FloatArray, HeadRequest, HeadResult, IntArray

# splitmix64 (Steele, Lea & Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Candidates that top_p alone looks at first; eight times more until their mass is enough.
_FIRST_CANDIDATES = 256

Unsigned = npt.NDArray[np.uint64]


def select_tokens(logits_RV: FloatArray, request: HeadRequest) -> HeadResult:
    """The sampled token of each row, as `HeadRequest` asks; logits are not changed."""
    biased = _with_bias(logits_RV, request)
    chosen = biased.argmax(-1)
    for row in np.flatnonzero(request.temperature > 0):
        chosen[row] = _sample_row(biased[row], request, int(row))
    return _result(logits_RV, chosen, request.num_top)


def score_targets(logits_RV: FloatArray, targets: IntArray, num_top: int) -> HeadResult:
    """The log-probabilities of given tokens."""
    return _result(logits_RV, targets, num_top)


def gumbel_noise(seed: int, position: int, token_ids: IntArray) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of each token id at one position under one 64-bit seed."""
    with np.errstate(over="ignore"):  # sums and products are modulo 2^64
        counter = np.array([seed, position], dtype=np.uint64)
        key = _mix(_mix(counter[:1]) + counter[1:])
        bits = _mix(key + token_ids.astype(np.uint64)) >> np.uint64(12)
    # 52 bits, so that adding a half is exact and the number is never 1, whose noise is infinite.
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def likeliest(logits_V: FloatArray, count: int) -> IntArray:
    """The ids of the `count` largest, largest first; of equal ones the lower id first."""
    ids = np.arange(len(logits_V))
    if count < len(logits_V):
        least = np.partition(logits_V, -count)[-count]
        ids = np.flatnonzero(~(logits_V < least))  # NaN counts as reaching it
    order: IntArray = ids[np.argsort(-logits_V[ids], kind="stable")]
    return order[:count]


def _sample_row(logits_V: FloatArray, request: HeadRequest, row: int) -> int:
    top_k, top_p = int(request.top_k[row]), float(request.top_p[row])
    # The largest becomes 0: no temperature, however small, makes it overflow.
    with np.errstate(invalid="ignore"):  # rows that are not finite are told by `_result`
        scaled = (logits_V - logits_V.max()) / request.temperature[row]
    ids = np.arange(len(scaled))
    if 0 < top_k < len(scaled):
        ids = likeliest(scaled, top_k)
        probabilities = _softmax(scaled[ids])
    elif top_p < 1:
        everything = _softmax(scaled)
        count = _FIRST_CANDIDATES
        ids = likeliest(scaled, count)
        while count < len(scaled) and everything[ids].sum() < top_p:
            count *= 8
            ids = likeliest(scaled, count)
        probabilities = everything[ids]
    else:
        probabilities = _softmax(scaled)
    keep = probabilities >= probabilities.max() * request.min_p[row]
    if top_p < 1:
        # The smallest set of likeliest tokens whose mass reaches top_p: never empty.
        keep &= probabilities.cumsum() - probabilities < top_p
    noise = gumbel_noise(int(request.seed[row]), int(request.position[row]), ids)
    noisy = np.where(keep, scaled[ids].astype(np.float64) + noise, -np.inf)
    return int(ids[noisy.argmax()])


def _softmax(scaled: FloatArray) -> FloatArray:
    weights = np.exp(scaled)
    result: FloatArray = weights / weights.sum()
    return result


def _with_bias(logits_RV: FloatArray, request: HeadRequest) -> FloatArray:
    if not request.bias and request.bitmask is None:
        return logits_RV
    biased = logits_RV.copy()
    for row, token_ids, values in request.bias:
        biased[row, token_ids] += values
    if request.bitmask is not None:
        allowed = np.unpackbits(request.bitmask.view(np.uint8), axis=-1, bitorder="little")
        biased[allowed[:, : biased.shape[1]] == 0] = -np.inf
    return biased


def _result(logits_RV: FloatArray, chosen_R: IntArray, num_top: int) -> HeadResult:
    rows = np.arange(len(logits_RV))
    with np.errstate(invalid="ignore", over="ignore"):
        peaks = logits_RV.max(-1) if len(rows) else np.empty(0, np.float32)
        logsumexp = peaks + np.log(np.exp(logits_RV - peaks[:, None]).sum(-1))
    num_top = min(num_top, logits_RV.shape[1])
    top_ids = np.empty((len(rows), num_top), dtype=np.int64)
    for row in rows if num_top else ():
        top_ids[row] = likeliest(logits_RV[row], num_top)
    return HeadResult(
        token_ids=np.asarray(chosen_R, dtype=np.int64),
        logprobs=_floats(logits_RV[rows, chosen_R] - logsumexp),
        logsumexp=_floats(logsumexp),
        top_ids=top_ids,
        top_logprobs=_floats(np.take_along_axis(logits_RV, top_ids, -1) - logsumexp[:, None]),
        finite=np.isfinite(logsumexp),
    )


def _floats(x: npt.NDArray[Any]) -> FloatArray:
    return x.astype(np.float32)


def _mix(x: Unsigned) -> Unsigned:
    x = x + _GOLDEN
    x = (x ^ x >> np.uint64(30)) * _MIX_1
    x = (x ^ x >> np.uint64(27)) * _MIX_2
    return x ^ x >> np.uint64(31)
