"""Attention of training: the documents of a pack, natively where they are short.

The kernels hold the scores of one document and head in a core's cache, backwards too, and take rows
as they lie in a pack. On a CPU, computed in float32; all else is `DocumentAttention`, torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.training.rows import are_native, array_of, native

_LONGEST: int = native.LONGEST_DOCUMENT if native else 0


class TrainingAttention:
    """`DocumentAttention`, quicker for packs of short documents."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self._short = max(self.lengths) <= _LONGEST
        self.starts = np.cumsum([0, *lengths], dtype=np.int64)
        self._torch: DocumentAttention | None = None

    def __call__(
        self, layer: int, query_QTHK: Tensor, key_TGK: Tensor, value_TGK: Tensor
    ) -> Tensor:
        tensors = [query_QTHK[0], key_TGK, value_TGK]
        short = self._short and key_TGK.shape[2] % 16 == 0
        if short and key_TGK.dtype == torch.bfloat16:
            # In that type torch's own are slow, or keep the scores of all documents.
            tensors = [one.float() for one in tensors]
        if short and are_native(*tensors):
            context: Tensor = _Documents.apply(*tensors, self.starts)  # type: ignore[no-untyped-call]
            return context.flatten(1).to(key_TGK.dtype)
        if self._torch is None:
            self._torch = DocumentAttention(self.lengths)
        return self._torch(layer, query_QTHK, key_TGK, value_TGK)


class _Documents(torch.autograd.Function):
    """Causal attention inside documents, `[T, H, K]`; weights are made again backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THK: Tensor,
        key_TGK: Tensor,
        value_TGK: Tensor,
        starts: npt.NDArray[np.int64],
    ) -> Tensor:
        ctx.save_for_backward(query_THK, key_TGK, value_TGK)
        ctx.starts = starts
        out = torch.empty_like(query_THK, memory_format=torch.contiguous_format)
        inputs = (array_of(one) for one in (query_THK, key_TGK, value_TGK))
        native.attend_documents(*inputs, starts, array_of(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs = ctx.saved_tensors
        query, key, value = (
            torch.empty_like(one, memory_format=torch.contiguous_format) for one in inputs
        )
        gradients = (array_of(one) for one in (grads[0], query, key, value))
        native.document_gradients(*(array_of(one) for one in inputs), ctx.starts, *gradients)
        return query, key, value, None
