"""AdamW over matrices and vectors apart, and the warmup-stable-decay schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov & Hutter 2019) and its learning-rate schedule."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # largest norm of the whole gradient; 0 = off
    warmup_updates: int = 100
    decay_fraction: float = 0.2  # share of the updates at the end that decay
    final_fraction: float = 0.0  # of the learning rate, at the last update


def build_adamw(parameters: Mapping[str, Tensor], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with decay on tensors of two and more dimensions."""
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def learning_rate_at(update: int, total: int, settings: OptimizerSettings) -> float:
    """Warm-up, a flat stretch, then linear decay to `final_fraction`; updates count from 0."""
    if update < settings.warmup_updates:
        return settings.learning_rate * (update + 1) / settings.warmup_updates
    decay = int(total * settings.decay_fraction)
    remaining = total - update
    if decay and remaining < decay:
        low = settings.final_fraction
        return settings.learning_rate * (low + (1 - low) * remaining / decay)
    return settings.learning_rate
