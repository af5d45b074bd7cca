"""The head of the native operations: `HeadRequest` and `HeadResult` as the C++ call takes them.

What is computed is said in `csrc/head.cpp`; the rules are those of `torch_sampling.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fourbee.kernels import _native
from fourbee.kernels.operations import FloatArray, HeadRequest, HeadResult, IntArray


def select_tokens(
    hidden_RD: FloatArray, head: _native.PackedWeights, vocabulary: int, request: HeadRequest
) -> HeadResult:
    """The sampled token of each row, as `HeadRequest` asks."""
    result = _empty(len(hidden_RD), min(request.num_top, vocabulary))
    bias = sorted(request.bias, key=lambda entry: entry[0])
    no_mask = np.empty((0, 0), dtype=np.uint32)
    _native.select_tokens(
        head, hidden_RD,
        request.temperature, request.top_k, request.top_p, request.min_p, request.seed,
        request.position,
        np.repeat(np.array([row for row, _, _ in bias], dtype=np.int64), [len(b[1]) for b in bias]),
        np.concatenate([np.empty(0, np.int64), *(ids for _, ids, _ in bias)]),
        np.concatenate([np.empty(0, np.float32), *(values for _, _, values in bias)]),
        no_mask if request.bitmask is None else request.bitmask,
        *_outputs(result),
    )  # fmt: skip
    return result


def score_targets(
    hidden_RD: FloatArray,
    head: _native.PackedWeights,
    vocabulary: int,
    targets: IntArray,
    num_top: int,
) -> HeadResult:
    """The log-probabilities of given tokens."""
    result = _empty(len(hidden_RD), min(num_top, vocabulary))
    _native.score_targets(head, hidden_RD, targets, *_outputs(result))
    return result


def _empty(rows: int, num_top: int) -> HeadResult:
    return HeadResult(
        token_ids=np.empty(rows, dtype=np.int64),
        logprobs=np.empty(rows, dtype=np.float32),
        logsumexp=np.empty(rows, dtype=np.float32),
        top_ids=np.empty((rows, num_top), dtype=np.int64),
        top_logprobs=np.empty((rows, num_top), dtype=np.float32),
        finite=np.empty(rows, dtype=np.bool_),
    )


def _outputs(
    result: HeadResult,
) -> tuple[IntArray, FloatArray, FloatArray, IntArray, FloatArray, npt.NDArray[np.bool_]]:
    return (
        result.token_ids,
        result.logprobs,
        result.logsumexp,
        result.top_ids,
        result.top_logprobs,
        result.finite,
    )
