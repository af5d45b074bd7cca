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
BLIND, BLIND_2 = ROOT / "tests/mini/blind", ROOT / "tests/mini/blind_2"

# Measured for the shipped v0 (docs/mini.md): greedy, 200 held-out samples a skill, 150 of each kind
# with unseen names, all blind fills.
HELD_OUT = {
    "about": 0.955, "arithmetic": 0.965, "completion": 0.995, "greeting": 0.96, "passage": 0.895,
    "passage_absent": 0.885, "refusal": 0.94, "tool_call": 0.995, "tool_result": 1.0,
}  # fmt: skip
UNSEEN = {"passage": 0.853, "passage_absent": 0.88}
BLIND_SHARES = {
    "about": 0.958, "arithmetic": 0.979, "completion": 1.0, "greeting": 0.979, "passage": 0.757,
    "passage_absent": 0.505, "refusal": 0.979, "tool_call": 0.827,
}  # fmt: skip
BLIND_2_SHARES = {"passage": 0.344, "passage_absent": 0.573}
# Asked for.
HELD_OUT_FLOOR, UNSEEN_FLOOR = 0.90, 0.85
BLIND_FLOOR, BLIND_PASSAGE_FLOOR = 0.70, 0.55
SKILLS = tuple(HELD_OUT)


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
    assert config.num_parameters < 7_500_000
    assert Tokenizer.load(embedded_model).vocab_size <= 4096


def test_the_blind_templates_are_those_that_were_fixed_before_training():
    log = (ROOT / "docs/log.md").read_text(encoding="utf-8")
    recorded = dict(re.findall(r"^    ([0-9a-f]{64})  (\w+\.jsonl)$", log, re.MULTILINE))
    for path in (*BLIND.glob("*.jsonl"), *BLIND_2.glob("*.jsonl")):
        assert recorded.get(hashlib.sha256(path.read_bytes()).hexdigest()) == path.name


def test_part_of_the_held_out_samples_is_answered_as_when_it_was_measured(llm):
    found = measured(llm, generated("held_out", limit=25))
    # 25 samples: a fall of 30 points is no chance.
    assert {skill for skill in SKILLS if found[skill] < HELD_OUT[skill] - 0.30} == set()


def blind_shares(llm: LLM, folder: Path) -> dict[str, float]:
    chosen = [
        {key: value for key, value in vars(sample).items() if value}
        for sample in fill_templates(folder, load_lexicon(), fills=5, seed=0)
    ]
    return measured(llm, chosen)


def far_apart(found: dict[str, float], documented: dict[str, float]) -> set[str]:
    """Skills whose share is not the one of the docs (machines round differently)."""
    return {skill for skill, share in documented.items() if abs(found[skill] - share) > 0.03}


@pytest.mark.slow
def test_held_out_shares_are_those_of_the_docs(llm):
    assert far_apart(measured(llm, generated("held_out", limit=200)), HELD_OUT) == set()


@pytest.mark.slow
def test_shares_with_unseen_names_are_those_of_the_docs(llm):
    assert far_apart(measured(llm, generated("unseen", limit=150)), UNSEEN) == set()


@pytest.mark.slow
def test_blind_shares_are_those_of_the_docs(llm):
    assert far_apart(blind_shares(llm, BLIND), BLIND_SHARES) == set()
    assert far_apart(blind_shares(llm, BLIND_2), BLIND_2_SHARES) == set()


def test_blind_templates_reach_what_was_asked():
    for skill, share in BLIND_SHARES.items():
        if skill != "passage_absent":  # below
            assert share >= (BLIND_PASSAGE_FLOOR if skill == "passage" else BLIND_FLOOR)


def test_unseen_names_reach_what_was_asked():
    assert min(UNSEEN.values()) >= UNSEEN_FLOOR


@pytest.mark.xfail(strict=True, reason="three skills are 0.5 to 3 points short")
def test_held_out_samples_reach_what_was_asked():
    assert min(HELD_OUT.values()) >= HELD_OUT_FLOOR


@pytest.mark.xfail(strict=True, reason="4.5 points short in passages that do not answer")
def test_blind_passages_that_do_not_answer_reach_what_was_asked():
    assert BLIND_SHARES["passage_absent"] >= BLIND_PASSAGE_FLOOR


@pytest.mark.xfail(strict=True, reason="the second blind set is paraphrased further: 29% answered")
def test_the_second_blind_set_reaches_what_was_asked_of_the_first():
    assert min(BLIND_2_SHARES.values()) >= BLIND_PASSAGE_FLOOR
