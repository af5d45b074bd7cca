"""AdamW, alone or beside Muon for the layers' matrices, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fourbee.training.checks import at_least, expect, read_only_with
from fourbee.training.muon import Muon


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov & Hutter 2019), Muon (Jordan et al. 2024), and the schedule."""

    learning_rate: float = 1e-3
    matrices: Literal["adamw", "muon"] = "adamw"  # what moves the matrices of the layers
    matrix_rate: float = 1.0  # Muon's learning rate (and so its decay), times learning_rate
    momentum: float = 0.95  # Muon's
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # largest norm of the whole gradient; 0 = off
    warmup_updates: int = 100
    schedule: Literal["wsd", "cosine"] = "wsd"  # warm-up, stable, decay; or one half of a cosine
    decay_fraction: float = 0.2  # wsd: share of the updates at the end that decay
    final_fraction: float = 0.0  # of the learning rate, that the end would have

    def __post_init__(self) -> None:
        at_least(0, self, "epsilon", "weight_decay", "clip", "warmup_updates")
        for name, value in vars(self).items():
            if name in ("learning_rate", "matrix_rate"):
                expect(0 < value < math.inf, name, value, "above 0")
            elif name in ("momentum", "beta1", "beta2"):
                expect(0 <= value < 1, name, value, "0 or more, below 1")
            elif name in ("decay_fraction", "final_fraction"):
                expect(0 <= value <= 1, name, value, "a share from 0 to 1")
        read_only_with(self, "matrices", ("muon",), "matrix_rate", "momentum")
        read_only_with(self, "schedule", ("wsd",), "decay_fraction")


def build_optimizers(
    parameters: Mapping[str, Tensor], settings: OptimizerSettings
) -> list[torch.optim.Optimizer]:
    """AdamW, with decay on tensors of two and more dimensions; Muon before it where it is chosen.

    Each group's `rate` is its multiple of the schedule's learning rate. Embedding and head are
    AdamW's in any case: their rows are tokens, of which an update sees few.
    """
    muon = settings.matrices == "muon"
    layers = [p for name, p in parameters.items() if muon and p.dim() == 2 and ".layers." in name]
    taken = {id(p) for p in layers}
    others = [p for p in parameters.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group | {"rate": 1.0} for group in groups],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    if not muon:
        return [adamw]
    assert layers, "no matrices of layers among the parameters"
    return [
        Muon(
            [{"params": layers, "rate": settings.matrix_rate}],
            lr=settings.learning_rate * settings.matrix_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
        adamw,
    ]


def learning_rate_at(update: int, total: int, settings: OptimizerSettings) -> float:
    """Warm-up, then a flat stretch and linear decay, or a cosine; updates count from 0.

    Both go towards `final_fraction` and would have it at update `total`, one after the last, which
    so learns at a little more: at 0 it would learn nothing. A decay of a single update is none.
    WSD: Hu et al. 2024 (arXiv 2404.06395); cosine: Loshchilov & Hutter 2017 (arXiv 1608.03983).
    """
    if update < settings.warmup_updates:
        return settings.learning_rate * (update + 1) / settings.warmup_updates
    if settings.schedule == "cosine":
        done = (update - settings.warmup_updates) / max(1, total - settings.warmup_updates)
        low = settings.final_fraction
        return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))
    decay = int(total * settings.decay_fraction)
    remaining = total - update
    if decay and remaining < decay:
        low = settings.final_fraction
        return settings.learning_rate * (low + (1 - low) * remaining / decay)
    return settings.learning_rate
