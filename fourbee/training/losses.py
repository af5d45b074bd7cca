"""Losses as functions of hidden states; the logits of a whole pack never exist at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.packing import Pack

# Rows whose logits exist at once: with a small vocabulary they stay in memory that is reused.
_CHUNK = 1024


@dataclass(frozen=True)
class NextToken:
    """Sums over the targets of a pack, to be divided by the targets of the whole update."""

    loss: Tensor  # summed cross-entropy, differentiable
    correct: Tensor  # [targets] bool: the target is the likeliest token


def next_token_loss(hidden_TD: Tensor, head: Linear, pack: Pack, ops: TorchOperations) -> NextToken:
    """Cross-entropy of each learned token from the hidden state before it."""
    assert not head.rotated
    targets = torch.from_numpy(pack.learned.nonzero()[0]).to(hidden_TD.device)
    labels = torch.from_numpy(pack.ids).to(hidden_TD.device)[targets]
    loss, correct = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TD[targets - 1], head.weight, labels, ops.dtype
    )
    return NextToken(loss, correct)


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
        needs_gradient = any(ctx.needs_input_grad[:2])
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        grad_hidden, losses, correct = [], [], []
        chunks = zip(torch.split(hidden_RD, _CHUNK), torch.split(labels_R, _CHUNK), strict=True)
        for hidden, labels in chunks:
            hidden = hidden.to(dtype)
            logits = (hidden @ weight.T).float()
            correct.append(logits.argmax(-1) == labels)
            logsumexp = logits.logsumexp(-1, keepdim=True)
            wanted = logits.gather(-1, labels[:, None])
            losses.append((logsumexp - wanted).sum())
            if needs_gradient:
                probabilities = logits.sub_(logsumexp).exp_()
                probabilities.scatter_add_(-1, labels[:, None], -torch.ones_like(wanted))
                error = probabilities.to(dtype)
                grad_hidden.append(error @ weight)
                grad_weight += error.T @ hidden
        if needs_gradient:
            ctx.save_for_backward(torch.cat(grad_hidden).to(hidden_RD.dtype), grad_weight)
        matches = torch.cat(correct)
        ctx.mark_non_differentiable(matches)
        return torch.stack(losses).sum(), matches

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradients[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, None, None
