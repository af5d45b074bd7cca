"""What is measured on held-out texts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fourbee.foundation.errors import TrainingError
from fourbee.training.held_out import HeldOutTexts
from fourbee.training.learner import Learner
from fourbee.training.losses import NextToken
from fourbee.training.recipe import Validation


def test_a_text_that_is_cut_is_one_sample(recipe, tmp_path, monkeypatch):
    """Of two texts in pieces of 32 tokens, one target is missed."""
    texts = [" ".join(["red blue"] * count) for count in (20, 30, 40)]
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shape = replace(recipe.model, max_position_embeddings=32)
    learner = Learner.from_recipe(replace(recipe, model=shape))
    packs = []

    def all_but_one(pack):
        packs.append(pack)
        correct = torch.ones(pack.num_targets, dtype=torch.bool)
        correct[0] = False
        return NextToken(torch.tensor(3.0), correct)

    monkeypatch.setattr(learner, "next_token", all_but_one)
    settings = replace(recipe, validation=Validation(file, samples=2))
    (measured,) = HeldOutTexts(settings, learner, print).measure().values()
    (pack,) = packs
    # With the token that ends a text, all but its first are targets.
    targets = sum(len(learner.tokenizer.encode(text, control_tokens=False)) for text in texts[:2])
    assert len(pack.lengths) > 2
    assert pack.num_targets == targets
    assert measured == {
        "loss": 3.0 / targets,
        "accuracy": (targets - 1) / targets,
        "exact": 0.5,
    }


def test_a_skill_may_not_be_called_as_a_key_of_the_log(recipe, tmp_path):
    file = tmp_path / "held_out.jsonl"
    lines = [{"text": "red"}, {"text": "blue", "skill": "update"}]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    learner = Learner.from_recipe(recipe)
    with pytest.raises(TrainingError) as error:
        HeldOutTexts(replace(recipe, validation=Validation(file, samples=1)), learner, print)
    assert str(error.value) == (f"{file}:2: skill = update: a log's own key; expected another name")
