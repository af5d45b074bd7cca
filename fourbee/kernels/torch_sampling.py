"""From logits to tokens in PyTorch: bias, bitmask, truncation, Gumbel-max.

The order is transformers': temperature, top_k, top_p, min_p. Randomness is counter-based: the
noise of a token is a hash of (seed, position, token id) and nothing else, and the sampled token is
the argmax of `logit / temperature + noise` (Gumbel-max), so that it does not depend on the batch,
and a draft token is right exactly when it is that argmax.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fourbee.kernels.operations import FloatArray, HeadRequest, HeadResult, IntArray

# splitmix64 (Steele, Lea & Flood 2014): constants as signed 64-bit numbers, since torch has those.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def select_tokens(logits_RV: Tensor, request: HeadRequest) -> HeadResult:
    """The sampled token of each row, as `HeadRequest` asks; logits are float32 and not changed."""
    biased = _with_bias(logits_RV, request)
    chosen = biased.argmax(-1)
    for row in np.flatnonzero(request.temperature > 0):
        chosen[row] = _sample_row(biased[row], request, int(row))
    return _result(logits_RV, chosen, request.num_top)


def score_targets(logits_RV: Tensor, targets: IntArray, num_top: int) -> HeadResult:
    """The log-probabilities of given tokens."""
    return _result(logits_RV, torch.from_numpy(targets).to(logits_RV.device), num_top)


def gumbel_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise of each token id at one position under one 64-bit seed, float64."""
    counter = torch.tensor([seed, position], dtype=torch.uint64).view(torch.int64)
    key = _mix(_mix(counter[0]) + counter[1]).to(token_ids.device)
    # 52 bits, so that adding a half is exact and the number is never 1, whose noise is infinite.
    bits = _shift_right(_mix(key + token_ids), 12)
    uniform = (bits.double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _sample_row(logits_V: Tensor, request: HeadRequest, row: int) -> Tensor:
    top_k, top_p = int(request.top_k[row]), float(request.top_p[row])
    # The largest becomes 0: no temperature, however small, makes it overflow.
    scaled = (logits_V - logits_V.max()) / float(request.temperature[row])
    vocabulary = scaled.shape[0]
    if 0 < top_k < vocabulary or top_p < 1:
        scaled, token_ids = scaled.topk(min(top_k, vocabulary) if top_k > 0 else vocabulary)
    else:
        token_ids = torch.arange(vocabulary, device=scaled.device)
    probabilities = scaled.softmax(-1)
    keep = probabilities >= probabilities.max() * float(request.min_p[row])
    if top_p < 1:
        # The smallest set of likeliest tokens whose mass reaches top_p: never empty.
        keep &= probabilities.cumsum(-1) - probabilities < top_p
    noise = gumbel_noise(int(request.seed[row]), int(request.position[row]), token_ids)
    noisy = torch.where(keep, scaled.double() + noise, -torch.inf)
    return token_ids[noisy.argmax()]


def _with_bias(logits_RV: Tensor, request: HeadRequest) -> Tensor:
    if not request.bias and request.bitmask is None:
        return logits_RV
    biased = logits_RV.clone()
    for row, token_ids, values in request.bias:
        biased[row, torch.from_numpy(token_ids).to(biased.device)] += torch.from_numpy(values).to(
            biased.device
        )
    if request.bitmask is not None:
        allowed = np.unpackbits(request.bitmask.view(np.uint8), axis=-1, bitorder="little")
        forbidden = torch.from_numpy(allowed[:, : biased.shape[1]] == 0).to(biased.device)
        biased = biased.masked_fill(forbidden, -torch.inf)
    return biased


def _result(logits_RV: Tensor, chosen_R: Tensor, num_top: int) -> HeadResult:
    logsumexp = logits_RV.logsumexp(-1)
    chosen_logits = logits_RV.gather(-1, chosen_R[:, None])[:, 0]
    top_logits, top_ids = logits_RV.topk(min(num_top, logits_RV.shape[-1]), dim=-1)
    return HeadResult(
        token_ids=chosen_R.cpu().numpy(),
        logprobs=_floats(chosen_logits - logsumexp),
        logsumexp=_floats(logsumexp),
        top_ids=top_ids.cpu().numpy(),
        top_logprobs=_floats(top_logits - logsumexp[:, None]),
        finite=torch.isfinite(logsumexp).cpu().numpy(),
    )


def _floats(x: Tensor) -> FloatArray:
    array: FloatArray = x.float().cpu().numpy()
    return array


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's shifts of int64 copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
