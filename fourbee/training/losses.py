"""Losses as functions of hidden states; the logits of a whole pack never exist at once.

Rows go through the head in chunks of about 64 MB of logits, which are worked on in place. What is
summed here is divided by counts of the whole update, so that any split into packs is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.packing import Pack
from fourbee.training.products import product

_CHUNK_BYTES = 64 << 20  # of float32 logits at once, while that is 64 to 1,024 rows
_FEWEST_ROWS, _MOST_ROWS = 64, 1024


@dataclass(frozen=True)
class NextToken:
    """Sums over the targets of a pack, to be divided by the targets of the whole update."""

    loss: Tensor  # summed cross-entropy, differentiable
    correct: Tensor  # [targets] bool: the target is the likeliest token


def next_token_loss(hidden_TD: Tensor, head: Linear, pack: Pack, ops: TorchOperations) -> NextToken:
    """Cross-entropy of each learned token from the hidden state before it."""
    hidden_RD, labels_R = target_rows(hidden_TD, pack)
    loss, correct = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_RD, head_weight(head), labels_R, ops.dtype
    )
    return NextToken(loss, correct)


def token_logps(
    hidden_TD: Tensor, head: Linear, pack: Pack, ops: TorchOperations, temperature: float = 1.0
) -> Tensor:
    """Log-probability `[targets]` of each learned token under `softmax(logits / temperature)`.

    Differentiable with any gradient a token. Between the passes only the targets' hidden states
    and two numbers a target are kept; the backward pass makes each chunk's softmax again.
    """
    hidden_RD, labels_R = target_rows(hidden_TD, pack)
    logps: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden_RD, head_weight(head), labels_R, ops.dtype, temperature
    )
    return logps


def sum_by_document(values: Tensor, pack: Pack) -> Tensor:
    """Sums `[documents]` of values `[targets]`.

    Each document is added up by itself, so that its bits depend neither on its neighbours nor,
    on a GPU, on the order in which threads arrive.
    """
    parts = torch.split(values, targets_by_document(pack).tolist())
    return torch.stack([part.sum() for part in parts])


def targets_by_document(pack: Pack) -> npt.NDArray[np.int64]:
    """Targets `[documents]` of each document."""
    starts = np.cumsum([0, *pack.lengths[:-1]])
    counts: npt.NDArray[np.int64] = np.add.reduceat(pack.learned.astype(np.int64), starts)
    return counts


def target_rows(hidden_TD: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
    """Hidden states `[targets, D]` that predict the learned tokens, and their ids `[targets]`."""
    targets = torch.from_numpy(pack.learned.nonzero()[0]).to(hidden_TD.device)
    return hidden_TD[targets - 1], torch.from_numpy(pack.ids).to(hidden_TD.device)[targets]


def head_weight(head: Linear) -> Tensor:
    """The head's matrix `[V, D]`; cut off where gradients are off, which a Function cannot see."""
    assert not head.rotated
    weight: Tensor = head.weight
    return weight if torch.is_grad_enabled() else weight.detach()


def chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """The rows whose logits exist together."""
    size = min(_MOST_ROWS, max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * vocabulary)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def logits_of(hidden: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits of a chunk in float32 (float64 where the product is), free to be overwritten."""
    logits = product(hidden, weight).to(accumulation_type(weight.dtype))
    return logits if temperature == 1.0 else logits.div_(temperature)


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """What sums are held in when products are made in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def add_outer_products(total_VD: Tensor, error_RV: Tensor, hidden_RD: Tensor) -> None:
    """`total += error^T hidden` in place: no second matrix of the head's size is made."""
    if total_VD.dtype == hidden_RD.dtype:
        total_VD.addmm_(error_RV.T, hidden_RD)
        return
    # The product is rounded to the compute type before it is added: a few rows of it at a time.
    rows = max(1, _CHUNK_BYTES // (4 * hidden_RD.shape[1]))
    for start in range(0, len(total_VD), rows):
        slab = slice(start, start + rows)
        total_VD[slab] += error_RV[:, slab].T @ hidden_RD


class HeadGradients:
    """The gradients of one head's product, added up chunk by chunk; only those that are needed."""

    def __init__(
        self, hidden_RD: Tensor, weight_VD: Tensor, dtype: torch.dtype, needed: tuple[bool, bool]
    ) -> None:
        self.needed = any(needed)
        self.hidden = torch.empty_like(hidden_RD) if needed[0] else None
        sums = accumulation_type(dtype)
        self.weight = torch.zeros_like(weight_VD, dtype=sums) if needed[1] else None

    def add(self, rows: slice, error: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """`error` is the gradient of the chunk's logits; all three are in the compute type."""
        if self.hidden is not None:
            self.hidden[rows] = product(error, weight.T).to(self.hidden.dtype)
        if self.weight is not None:
            add_outer_products(self.weight, error, hidden)


def scale_saved(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The saved gradients of a sum times the gradient of that sum.

    In place, for memory: autograd refuses a second backward pass, since the tensors have changed.
    """
    hidden, weight = (None if one is None else one.mul_(scale) for one in ctx.saved_tensors)
    return hidden, weight


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden W^T`, with its gradients made in the forward pass.

    Each chunk's logits are turned into their gradient (softmax minus one-hot) at once and dropped,
    so that memory is one chunk of logits and not all of them, and the softmax is made once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VD.to(dtype)
        gradients = HeadGradients(hidden_RD, weight_VD, dtype, ctx.needs_input_grad[:2])
        losses = hidden_RD.new_empty(len(labels_R), dtype=accumulation_type(dtype))
        correct = torch.empty_like(labels_R, dtype=torch.bool)

        def visit(rows: slice) -> None:  # a function, so that a chunk is freed before the next
            hidden, labels = hidden_RD[rows].to(dtype), labels_R[rows, None]
            logits = logits_of(hidden, weight)
            highest, likeliest = logits.max(-1, keepdim=True)
            correct[rows] = (likeliest == labels)[:, 0]
            wanted = logits.sub_(highest).gather(-1, labels)
            total = logits.exp_().sum(-1, keepdim=True)
            losses[rows] = (total.log() - wanted)[:, 0]
            if gradients.needed:
                error = logits.div_(total).scatter_add_(-1, labels, -torch.ones_like(wanted))
                gradients.add(rows, error.to(dtype), hidden, weight)

        for rows in chunks(len(labels_R), len(weight_VD)):
            visit(rows)
        ctx.save_for_backward(gradients.hidden, gradients.weight)
        ctx.mark_non_differentiable(correct)
        return losses.sum(), correct

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight = scale_saved(ctx, outputs[0])
        return hidden, weight, None, None


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities of labels under `softmax(hidden W^T / temperature)`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        labels_R: Tensor,
        dtype: torch.dtype,
        temperature: float,
    ) -> Tensor:
        weight = weight_VD.to(dtype)
        logps = hidden_RD.new_empty(len(labels_R), dtype=accumulation_type(dtype))
        highests, totals = torch.empty_like(logps), torch.empty_like(logps)

        def visit(rows: slice) -> None:
            logits = logits_of(hidden_RD[rows].to(dtype), weight, temperature)
            highest = logits.amax(-1, keepdim=True)
            wanted = logits.sub_(highest).gather(-1, labels_R[rows, None])
            total = logits.exp_().sum(-1, keepdim=True)
            logps[rows] = (wanted - total.log())[:, 0]
            highests[rows], totals[rows] = highest[:, 0], total[:, 0]

        for rows in chunks(len(labels_R), len(weight_VD)):
            visit(rows)
        ctx.save_for_backward(hidden_RD, weight_VD, labels_R, highests, totals)
        ctx.dtype, ctx.temperature = dtype, temperature
        return logps

    @staticmethod
    def backward(
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_RD, weight_VD, labels_R, highests, totals = ctx.saved_tensors
        dtype = ctx.dtype
        weight = weight_VD.to(dtype)
        gradients = HeadGradients(hidden_RD, weight_VD, dtype, ctx.needs_input_grad[:2])
        grad_logits = outputs[0] / ctx.temperature

        def visit(rows: slice) -> None:
            hidden, labels = hidden_RD[rows].to(dtype), labels_R[rows, None]
            wanted = grad_logits[rows, None]
            logits = logits_of(hidden, weight, ctx.temperature)
            exponentials = logits.sub_(highests[rows, None]).exp_()
            error = exponentials.mul_(-wanted / totals[rows, None])
            error.scatter_add_(-1, labels, wanted)
            gradients.add(rows, error.to(dtype), hidden, weight)

        for rows in chunks(len(labels_R), len(weight_VD)):
            visit(rows)
        return gradients.hidden, gradients.weight, None, None, None
