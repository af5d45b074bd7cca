"""Distillation between final hidden states: a divergence of whole next-token distributions.

Teacher and student share a vocabulary and nothing else: their widths and depths may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.checks import expect, read_only_with
from fourbee.training.losses import (
    HeadGradients,
    accumulation_type,
    chunks,
    head_weight,
    logits_of,
    scale_saved,
    target_rows,
)
from fourbee.training.packing import Pack

# Matrices of a chunk's logits that exist at once: both models', the mixture's, two to work on.
_MATRICES = 5


@dataclass(frozen=True)
class DistillationSettings:
    """Which divergence of the teacher's distribution P and the student's Q.

    forward_kl is `KL(P || Q)` (Hinton et al. 2015), reverse_kl `KL(Q || P)` (MiniLLM, Gu et al.
    2023), jsd `beta KL(P || M) + (1 - beta) KL(Q || M)` with `M = beta P + (1 - beta) Q` (GKD,
    Agarwal et al. 2024). Both models' logits are divided by the temperature; the value is not
    multiplied by its square.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5  # jsd
    temperature: float = 1.0

    def __post_init__(self) -> None:
        expect(0 < self.beta < 1, "beta", self.beta, "above 0, below 1")
        expect(0 < self.temperature < math.inf, "temperature", self.temperature, "above 0")
        read_only_with(self, "divergence", ("jsd",), "beta")


def distillation_loss(
    student_TD: Tensor,
    student_head: Linear,
    teacher_TE: Tensor,
    teacher_head: Linear,
    pack: Pack,
    ops: TorchOperations,
    settings: DistillationSettings,
) -> Tensor:
    """The divergence at every learned token of the pack, summed; the teacher gets no gradient.

    Raises UsageError where the two vocabularies differ in size.
    """
    sizes = student_head.weight.shape[0], teacher_head.weight.shape[0]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"teacher: {sizes[1]:,} vocabulary entries, the student has {sizes[0]:,}: "
            "expected a teacher with the student's tokenizer"
        )
    rows, _ = target_rows(student_TD, pack)
    teacher_rows, _ = target_rows(teacher_TE.detach(), pack)
    teacher = teacher_rows, head_weight(teacher_head).detach()
    loss: Tensor = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        rows, head_weight(student_head), teacher, ops.dtype, settings
    )
    return loss


class _ChunkedDivergence(torch.autograd.Function):
    """Summed divergence, with the student's gradients made in the forward pass chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        teacher: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        settings: DistillationSettings,
    ) -> Tensor:
        weight, teacher_weight = weight_VD.to(dtype), teacher[1].to(dtype)
        gradients = HeadGradients(hidden_RD, weight_VD, dtype, ctx.needs_input_grad[:2])
        losses = hidden_RD.new_empty(len(hidden_RD), dtype=accumulation_type(dtype))
        diverge = _DIVERGENCES[settings.divergence]

        def visit(rows: slice) -> None:  # a function, so that a chunk is freed before the next
            hidden = hidden_RD[rows].to(dtype)
            student = logits_of(hidden, weight, settings.temperature).log_softmax(-1)
            known = logits_of(teacher[0][rows].to(dtype), teacher_weight, settings.temperature)
            losses[rows], error = diverge(known.log_softmax(-1), student, settings.beta)
            if gradients.needed:
                gradients.add(rows, error.div_(settings.temperature).to(dtype), hidden, weight)

        for rows in chunks(len(hidden_RD), _MATRICES * len(weight_VD)):
            visit(rows)
        ctx.save_for_backward(gradients.hidden, gradients.weight)
        return losses.sum()

    @staticmethod
    def backward(
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight = scale_saved(ctx, outputs[0])
        return hidden, weight, None, None, None


# Each takes log P of the teacher and log Q of the student, `[rows, V]`, and gives the divergence of
# each row and its gradient by the student's logits.


def _forward_kl(teacher: Tensor, student: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    likely = teacher.exp()
    values = (likely * (teacher - student)).sum(-1)
    return values, student.exp().sub_(likely)


def _reverse_kl(teacher: Tensor, student: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    likely, excess = student.exp(), student - teacher
    values = (likely * excess).sum(-1)
    return values, likely.mul_(excess.sub_(values[:, None]))


def _jsd(teacher: Tensor, student: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    known = (teacher.exp() * (teacher - mixture)).sum(-1)
    # By Q, M's own change cancels: the gradient by log Q is (1 - beta) Q log(Q / M).
    likely, excess = student.exp(), student - mixture
    own = (likely * excess).sum(-1)
    error = likely.mul_(excess.sub_(own[:, None])).mul_(1 - beta)
    return beta * known + (1 - beta) * own, error


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
}
