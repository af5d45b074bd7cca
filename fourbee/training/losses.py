"""Losses as functions of hidden states; never more logits than the targets need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.data import Pack

# Rows whose logits exist at once.
_CHUNK = 4096


@dataclass(frozen=True)
class NextToken:
    """Sums over the targets of a pack, to be divided by the targets of the whole update."""

    loss: Tensor  # summed cross-entropy, differentiable
    correct: Tensor  # [targets] bool: the target is the likeliest token


def next_token_loss(
    hidden_TD: Tensor, head: Linear, pack: Pack, ops: TorchOperations
) -> NextToken:
    """Cross-entropy of each learned token from the hidden state before it."""
    targets = torch.from_numpy(pack.learned.nonzero()[0]).to(hidden_TD.device)
    labels = torch.from_numpy(pack.ids).to(hidden_TD.device)[targets]
    losses, correct = [], []
    for rows, wanted in zip(targets.split(_CHUNK), labels.split(_CHUNK), strict=True):
        logits = ops.linear(hidden_TD[rows - 1], head).float()
        losses.append(F.cross_entropy(logits, wanted, reduction="sum"))
        correct.append(logits.detach().argmax(-1) == wanted)
    return NextToken(torch.stack(losses).sum(), torch.cat(correct))
