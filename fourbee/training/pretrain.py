"""Pretraining, from scratch or continued: every token of a document is a target.

Continued pretraining is `init_from` another run's model, with other data or, for longer texts,
other `positions`.
"""

from __future__ import annotations

from pathlib import Path

from fourbee.training.text import TextRecipe, TextStage
from fourbee.training.trainer import Reporter, Trainer


def pretrain(recipe: TextRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(
        "pretrain", recipe, lambda learner, told: TextStage(recipe, "all", learner, told), reporter
    ).train()
