"""All stages of training by name: the recipe that each reads, and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fourbee.training.distill import DistillRecipe, distill
from fourbee.training.grpo import GrpoRecipe, grpo
from fourbee.training.preference import PreferenceRecipe, preference
from fourbee.training.pretrain import pretrain
from fourbee.training.reward_model import RewardRecipe, reward_model
from fourbee.training.sft import sft
from fourbee.training.text import TextRecipe

STAGES: Mapping[str, tuple[type[Any], Callable[..., Path]]] = {
    "pretrain": (TextRecipe, pretrain),
    "sft": (TextRecipe, sft),
    "reward": (RewardRecipe, reward_model),
    "preference": (PreferenceRecipe, preference),
    "grpo": (GrpoRecipe, grpo),
    "distill": (DistillRecipe, distill),
}
