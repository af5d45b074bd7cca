"""fourbee-mini as it is shipped: what it is, and how often it is right.

Floors are those that were asked for; docs/mini.md has what was measured. The quick test takes part
of each set, the slow one all of it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from fourbee.engine.llm import LLM
from fourbee.evaluation.samples import answer, shares
from fourbee.foundation.settings import build, read_toml
from fourbee.model.config import Qwen3Config
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.generators.blind import fill_templates
from fourbee.training.generators.generate import DataRecipe, samples
from fourbee.training.generators.lexicon import load_lexicon

ROOT = Path(__file__).resolve().parents[2]
BLIND = ROOT / "tests/mini/blind"

# Asked for: held-out samples, and templates by somebody who has not seen the generators.
HELD_OUT_FLOOR = 0.90
BLIND_FLOOR, BLIND_PASSAGE_FLOOR = 0.70, 0.55
UNSEEN_FLOOR = 0.85
SKILLS = (
    "about", "arithmetic", "completion", "greeting", "passage", "passage_absent", "refusal",
    "tool_call", "tool_result",
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(embedded_model: Path) -> LLM:
    return LLM.load(embedded_model)


def generated(name: str, limit: int) -> list[dict]:
    """The first `limit` samples of each skill of a test file of the data recipe."""
    recipe = build(DataRecipe, read_toml(ROOT / "recipes/mini/data.toml"))
    file = next(file for file in recipe.files if file.name == name)
    kept: list[dict] = []
    counts: dict[str, int] = {}
    for sample in samples(recipe.seed, file, load_lexicon()):
        counts[sample.skill] = counts.get(sample.skill, 0) + 1
        if sample.skill in SKILLS and counts[sample.skill] <= limit:
            kept.append(
                vars(sample) | {"prompt": sample.prompt} if sample.prompt else as_chat(sample)
            )
    return kept


def as_chat(sample) -> dict:
    return {
        key: value for key, value in vars(sample).items() if key not in ("prompt", "completion")
    }


def measured(llm: LLM, chosen: list[dict]) -> dict[str, float]:
    found = shares(list(answer(llm, chosen, temperature=0.0, seed=0)))
    print({skill: str(share) for skill, share in found.items()})
    return {skill: share.value for skill, share in found.items()}


def test_the_embedded_model_is_small_and_of_one_geometry(embedded_model: Path):
    config = Qwen3Config.load(embedded_model)
    size = sum(path.stat().st_size for path in embedded_model.iterdir())
    assert size <= 15_000_000
    assert config.head_dim == 128
    assert (
        config.hidden_size % 128 == config.intermediate_size % 128 == config.vocab_size % 128 == 0
    )
    assert config.num_parameters < 6_000_000
    assert Tokenizer.load(embedded_model).vocab_size <= 4096


def test_the_blind_templates_are_those_that_were_fixed_before_training():
    log = (ROOT / "docs/log.md").read_text(encoding="utf-8")
    recorded = dict(re.findall(r"^    ([0-9a-f]{64})  (\w+\.jsonl)$", log, re.MULTILINE))
    for path in BLIND.glob("*.jsonl"):
        assert recorded.get(hashlib.sha256(path.read_bytes()).hexdigest()) == path.name


def test_part_of_the_held_out_samples_is_answered_rightly(llm):
    found = measured(llm, generated("held_out", limit=25))
    # 25 samples: a model at 90% falls below 70% once in a hundred times.
    assert all(found[skill] >= 0.70 for skill in SKILLS), found


@pytest.mark.slow
def test_held_out_samples_of_every_skill_reach_what_was_asked(llm):
    found = measured(llm, generated("held_out", limit=400))
    assert {skill: share for skill, share in found.items() if share < HELD_OUT_FLOOR} == {}


@pytest.mark.slow
def test_passages_with_unseen_entities_reach_what_was_asked(llm):
    found = measured(llm, generated("unseen", limit=500))
    assert found["passage"] >= UNSEEN_FLOOR


@pytest.mark.slow
def test_blind_templates_reach_what_was_asked(llm):
    chosen = [
        {key: value for key, value in vars(sample).items() if value}
        for sample in fill_templates(BLIND, load_lexicon(), fills=5, seed=0)
    ]
    found = measured(llm, chosen)
    low = {
        skill: share
        for skill, share in found.items()
        if share < (BLIND_PASSAGE_FLOOR if skill.startswith("passage") else BLIND_FLOOR)
    }
    assert low == {}
