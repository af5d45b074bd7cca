"""Continued pretraining on longer texts with another base of the rotations, from start to serving.

A model that knows texts of 64 tokens goes on with ones of 512. Not here: what a recipe's
`positions` may be, and that they are written (`test_export.py`).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.model.config import Qwen3Config
from fourbee.training.learner import Learner
from fourbee.training.optimizers import OptimizerSettings
from fourbee.training.packing import Pack, pack_documents
from fourbee.training.pretrain import pretrain
from fourbee.training.recipe import ModelShape, Positions, Validation
from fourbee.training.sources import Source
from fourbee.training.text import TextRecipe, TextStage
from fourbee.training.trainer import Trainer

from .conftest import WORDS, SilentReporter
from .test_export import BACKENDS, KV_TYPE

SHORT, LONG = 64, 512
BASE, LONGER_BASE = 10_000.0, 1_000_000.0
TOLERANCE = 1e-4
ANSWER = 60


def write_texts(path: Path, count: int, words: int, seed: int) -> Source:
    """Texts of four words each, said in turn."""
    drawn = random.Random(seed)
    lines = []
    for _ in range(count):
        chosen = drawn.sample(WORDS, 4)
        text = " ".join(chosen[index % len(chosen)] for index in range(words))
        lines.append(json.dumps({"text": text}) + "\n")
    path.write_text("".join(lines))
    return Source(path)


def later_loss(learner: Learner, pack: Pack) -> float:
    """Mean loss of the targets beyond the positions of the short texts."""
    with torch.no_grad():
        logps = learner.logps(pack)
    later = torch.from_numpy(pack.positions[pack.learned] >= SHORT)
    assert later.sum() > 1000
    return -logps[later].mean().item()


@dataclass(frozen=True)
class Continued:
    """A run on longer texts, what came of it, and longer texts that are held out."""

    recipe: TextRecipe
    learner: Learner
    exported: Path
    told: SilentReporter
    held_out: Pack


@pytest.fixture(scope="module")
def continued(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    folder = tmp_path_factory.mktemp("longer")
    short = TextRecipe(
        output=folder / "short",
        data=(write_texts(folder / "short.jsonl", 200, 30, 1),),
        tokenizer=tokenizer_folder,
        model=ModelShape(128, 256, 2, 2, 1, 128, SHORT, BASE),
        optimizer=OptimizerSettings(learning_rate=3e-3, matrices="muon", warmup_updates=5),
        tokens_per_update=512,
        updates=100,
        precision="float32",
        threads=1,
    )
    held_out = write_texts(folder / "held_out.jsonl", 8, 300, 3)
    recipe = replace(
        short,
        output=folder / "long",
        data=(write_texts(folder / "long.jsonl", 100, 300, 2),),
        init_from=pretrain(short, SilentReporter()),
        model=ModelShape(),
        positions=Positions(LONGER_BASE, LONG),
        tokens_per_update=1024,
        updates=40,
        validation=Validation(held_out.path, samples=8),
        validate_every=20,
    )
    told = SilentReporter()
    trainer = Trainer(
        "pretrain", recipe, lambda learner, told: TextStage(recipe, "all", learner, told), told
    )
    exported, learner = trainer.train(), trainer.learner
    texts = [json.loads(line)["text"] for line in held_out.path.read_text().splitlines()]
    ids = [learner.tokenizer.encode(text, control_tokens=False)[:LONG] for text in texts]
    (pack,) = pack_documents([(one, [True] * LONG) for one in ids], LONG * len(ids))
    return Continued(recipe, learner, exported, told, pack)


def test_its_positions_are_exported(continued):
    config = Qwen3Config.load(continued.exported)
    assert (config.rope_theta, config.max_position_embeddings) == (LONGER_BASE, LONG)
    begun = Qwen3Config.load(continued.recipe.init_from)
    assert (begun.rope_theta, begun.max_position_embeddings) == (BASE, SHORT)


def test_long_held_out_texts_become_likelier(continued):
    """Than they were to the model of short texts, with its own base and with the new one."""
    before = [
        later_loss(
            Learner.from_recipe(replace(continued.recipe, positions=one)), continued.held_out
        )
        for one in (Positions(), continued.recipe.positions)
    ]
    after = later_loss(continued.learner, continued.held_out)
    print(f"loss beyond {SHORT} positions: {before[0]:.3f}; turned {before[1]:.3f}; {after:.3f}")
    assert after < 0.5 * min(before)
    assert continued.told.validations[-1]["all"]["loss"] < 0.5 * continued.told.records[0]["loss"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_served_at_long_positions_is_what_was_trained(continued, backend):
    prompt = continued.held_out.ids[: LONG - ANSWER].tolist()
    llm = LLM.load(continued.exported, "cpu", "float32", backend=backend, kv_type=KV_TYPE[backend])
    params = SamplingParams(temperature=0, max_tokens=ANSWER, logprobs=20, ignore_eos=True)
    (answer,) = llm.generate([prompt], params)
    assert answer.logprobs is not None
    assert len(answer.token_ids) == ANSWER
    assert len(set(answer.token_ids)) > 3  # not degenerate
    assert max(continued.held_out.lengths) == len(prompt) + ANSWER == LONG

    (pack,) = pack_documents([([*prompt, *answer.token_ids], [True] * LONG)], LONG)
    with torch.no_grad():
        hidden = continued.learner.hidden(pack)[len(prompt) - 1 : -1]
        logits = continued.learner.ops.linear(hidden, continued.learner.head)
    assert logits.argmax(-1).tolist() == list(answer.token_ids)
    trained = torch.log_softmax(logits, -1)
    for row, token in enumerate(answer.logprobs):
        ids, served = zip(*token.scored.top, strict=True)
        assert (trained[row, list(ids)] - torch.tensor(served)).abs().max() <= TOLERANCE
