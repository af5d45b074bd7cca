"""Supervised fine-tuning: the assistant's words and the end of its turns are the only targets."""

from __future__ import annotations

from pathlib import Path

from fourbee.training.trainer import Reporter, Trainer, TrainRecipe


def sft(recipe: TrainRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(recipe, "assistant", reporter).train()
