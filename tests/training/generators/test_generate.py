"""Files of samples: every answer right, the same seed the same bytes, and splits that hold."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fourbee.evaluation.scoring import is_right
from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import build, read_toml
from fourbee.training.generators.generate import (
    SKILLS,
    DataFile,
    DataRecipe,
    Phase,
    fits_split,
    is_held_out,
    samples,
    write_samples,
)
from fourbee.training.generators.sample import Sample, assistant, user

from .conftest import asked, last_answer

RECIPE = Path(__file__).parents[3] / "recipes" / "mini" / "data.toml"
EVERYTHING = {**dict.fromkeys(SKILLS, 1.0), "multi_turn": 1.0, "long_chat": 0.5}
SLOT = re.compile(r"\{(s|v|n|x|a|b|passage|question|span|key|sentence|result)\}")


def data_file(name="train", count=600, held_out=False, unseen=False, mixture=EVERYTHING):
    return DataFile(name, (Phase(count, mixture),), held_out, unseen)


@pytest.fixture(scope="module")
def training(lexicon) -> list[Sample]:
    return list(samples(1, data_file(count=1200), lexicon))


@pytest.fixture(scope="module")
def held_out(lexicon) -> list[Sample]:
    return list(samples(1, data_file("held_out", 250, held_out=True), lexicon))


def test_every_last_answer_is_what_its_sample_expects(training, held_out):
    for sample in training + held_out:
        if sample.skill != "repeat":
            assert sample.expect is not None
            assert is_right(last_answer(sample), sample.expect), sample


def test_no_slot_is_left_open(training, held_out):
    for sample in training + held_out:
        texts = [m["content"] for m in sample.messages] + [sample.prompt, sample.completion]
        assert not any(SLOT.search(text) for text in texts), sample


def test_every_skill_occurs_in_both_languages(training):
    seen = Counter((sample.skill, sample.language) for sample in training)
    skills = {*EVERYTHING, "tool_call", "tool_result"} - {"tools", "long_chat"}
    assert seen.keys() == {(skill, language) for skill in skills for language in ("en", "zh")}


def test_turns_alternate_and_end_with_the_assistant(training):
    for sample in training:
        roles = [m["role"] for m in sample.messages if m["role"] not in ("system", "tool")]
        if sample.skill == "tool_result":
            assert roles == ["user", "assistant", "assistant"]
        else:
            assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert bool(sample.messages) != bool(sample.completion)
    assert max(len(s.messages) for s in training if s.skill == "multi_turn") >= 12


def test_tools_are_offered_where_they_are_not_needed_too(training):
    idle = [s for s in training if s.tools and not s.skill.startswith("tool")]
    assert idle
    for sample in idle:
        names = [tool["function"]["name"] for tool in sample.tools]
        assert len(set(names)) == len(names)
        assert "<tool_call>" not in last_answer(sample)


def test_a_line_is_json_without_what_is_empty():
    sample = Sample("about", "zh", (user("问"), assistant("答")), expect={"kind": "x"})
    assert sample.to_json() == (
        '{"skill": "about", "language": "zh", "messages": [{"role": "user", "content": "问"}, '
        '{"role": "assistant", "content": "答"}], "expect": {"kind": "x"}}'
    )
    raw = Sample("repeat", "en", prompt="a", completion=" a")
    assert json.loads(raw.to_json()).keys() == {"skill", "language", "prompt", "completion"}


def test_training_and_held_out_prompts_are_disjoint(training, held_out):
    assert all(fits_split(sample, held_out=False) for sample in training)
    assert all(fits_split(sample, held_out=True) for sample in held_out)
    assert {asked(s) for s in training} & {asked(s) for s in held_out} == set()


def test_no_turn_of_a_training_conversation_asks_a_held_out_prompt(training):
    for sample in training:
        for message in sample.messages:
            if message["role"] == "user":
                assert not is_held_out(message["content"])


def test_about_a_sixteenth_of_prompts_is_held_out(lexicon):
    drawn = [f"prompt {index}" for index in range(4000)]
    assert 0.05 < sum(map(is_held_out, drawn)) / len(drawn) < 0.075


def test_a_sample_depends_on_seed_file_phase_and_number_alone(lexicon):
    few = list(samples(1, data_file(count=20), lexicon))
    assert few == list(samples(1, data_file(count=60), lexicon))[:20]
    assert few != list(samples(2, data_file(count=20), lexicon))
    assert few != list(samples(1, data_file("other", 20), lexicon))
    twice = list(samples(1, DataFile("train", (Phase(20, EVERYTHING),) * 2), lexicon))
    assert twice[:20] == few != twice[20:]


def test_the_same_seed_gives_the_same_bytes_in_any_process(lexicon, tmp_path):
    """String hashes differ between processes: an order that came from a set would show."""
    script = (
        "import hashlib, sys\n"
        "from fourbee.training.generators.generate import DataFile, Phase, samples\n"
        "from fourbee.training.generators.lexicon import load_lexicon\n"
        f"file = DataFile('train', (Phase(120, {EVERYTHING!r}),))\n"
        "text = ''.join(s.to_json() + '\\n' for s in samples(1, file, load_lexicon()))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    path = write_samples(tmp_path / "a.jsonl", samples(1, data_file(count=120), lexicon))
    found = [hashlib.sha256(path.read_bytes()).hexdigest()]
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found.append(run.stdout.strip())
    assert len(set(found)) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def broken():
        yield Sample("repeat", "en", prompt="a", completion=" a")
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        write_samples(tmp_path / "sub" / "data.jsonl", broken())
    assert not (tmp_path / "sub" / "data.jsonl").exists()


def test_an_unknown_skill_is_an_error_with_the_nearest_one():
    with pytest.raises(UsageError) as error:
        DataRecipe((DataFile("sft", (Phase(1, {"pasage": 1.0}),)),))
    assert str(error.value) == "files 'sft': unknown skill 'pasage' (did you mean 'passage'?)"


def test_the_recipe_of_fourbee_mini_can_be_drawn_from(lexicon):
    recipe = build(DataRecipe, read_toml(RECIPE))
    names = [file.name for file in recipe.files]
    assert len(set(names)) == len(names)
    assert {"pretrain", "sft", "held_out", "unseen"} <= set(names)
    for file in recipe.files:
        phases = tuple(Phase(3, phase.mixture) for phase in file.phases)
        drawn = list(samples(1, DataFile(file.name, phases, file.held_out, file.unseen), lexicon))
        assert len(drawn) == 3 * len(phases)
        assert all(fits_split(sample, file.held_out) for sample in drawn)


@pytest.mark.parametrize("mixture", [{}, {"copy": 0.0}, {"copy": -1.0, "sums": 2.0},
                                     {"copy": float("nan")}, {"copy": float("inf")}])  # fmt: skip
def test_a_mixture_that_nothing_can_be_drawn_from_is_one_line(mixture):
    with pytest.raises(UsageError) as error:
        Phase(3, mixture)
    assert str(error.value) == (
        f"mixture = {mixture}: expected weights of 0 or more of skills, one of them above 0"
    )


def test_less_than_no_samples_are_one_line():
    with pytest.raises(UsageError, match=r"^samples = -1: expected at least 0"):
        Phase(-1, {"copy": 1.0})
