"""Supervised fine-tuning: the assistant's words and the end of its turns are the only targets."""

from __future__ import annotations

from pathlib import Path

from fourbee.training.text import TextRecipe, TextStage
from fourbee.training.trainer import Reporter, Trainer


def sft(recipe: TextRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(
        "sft", recipe, lambda learner, told: TextStage(recipe, "assistant", learner, told), reporter
    ).train()
