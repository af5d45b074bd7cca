"""Pretraining, from scratch or continued: every token of a document is a target."""

from __future__ import annotations

from pathlib import Path

from fourbee.training.trainer import Reporter, Trainer, TrainRecipe


def pretrain(recipe: TrainRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(recipe, "all", reporter).train()
