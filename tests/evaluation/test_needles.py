"""Needles: the texts are what they say, and are found whatever weights, keys and values are in."""

from __future__ import annotations

import json

import pytest

from fourbee.cli import run
from fourbee.cli.needle import table
from fourbee.engine.llm import Completion, Usage
from fourbee.evaluation.needles import Found, haystack, measure, needle_prompt, retrieval_llm
from fourbee.evaluation.retrieval import END, is_key, is_value, vocabulary
from fourbee.foundation.errors import UsageError
from fourbee.kernels.backends import native_built

DEPTHS = (0.0, 0.1, 0.5, 0.9, 1.0)
TOKENS = vocabulary()

needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


def test_a_haystack_tells_every_name_once_and_each_needle_at_its_depth() -> None:
    text = haystack(1000, DEPTHS, seed=1, distractors=20, values=4)
    words = [TOKENS[token] for token in text.token_ids]
    named = [word for word in words if is_key(word) or is_value(word)]
    assert len(named) == len(set(named)) == 25 * 5
    # "<s>", then hay and needles of 7 tokens: note, key, 4 values, full stop.
    room = len(words) - 1
    for question in text.questions:
        ask, key = question.token_ids
        at = text.token_ids.index(key)
        assert (TOKENS[ask], at) == ("recall", 2 + round(question.depth * (room - 7)))
        told = text.token_ids[at - 1 : at + 6]
        assert [TOKENS[told[0]], TOKENS[told[-1]]] == ["note", END]
        assert told[2:-1] == question.answer_ids
        assert len(text.prompt(question)) + len(question.answer_ids) + 1 == 1000


def test_the_same_seed_gives_the_same_text_and_another_one_another() -> None:
    assert needle_prompt(300, 0.5, seed=7) == needle_prompt(300, 0.5, seed=7)
    assert needle_prompt(300, 0.5, seed=7) != needle_prompt(300, 0.5, seed=8)


@pytest.mark.parametrize(
    ("length", "depths", "distractors"), [(5, [0.5], 0), (40, [0.0, 0.1], 0), (200, [0.5], 30)]
)
def test_needles_that_do_not_fit_are_an_error(length, depths, distractors) -> None:
    with pytest.raises(UsageError, match="no room among"):
        haystack(length, depths, 0, distractors)


class Recorded:
    """Answers with what it is told to, whatever the question."""

    def __init__(self, answers) -> None:
        self.answers = list(answers)

    def generate(self, prompts, params, attention):
        assert attention == "dense"
        ids, reason = self.answers.pop(0)
        return [Completion("text", ids, reason, Usage(len(prompts[0]), len(ids)))]


def test_only_the_whole_answer_and_its_end_are_exact() -> None:
    [question] = haystack(500, [0.5], seed=3).questions
    right = question.answer_ids
    answers = [(right, "stop"), (right, "length"), (right[:-1], "stop"), (right[::-1], "stop")]
    exact = [
        next(measure(Recorded([answer]), [500], [0.5], seed=3)).exact  # type: ignore[arg-type]
        for answer in answers
    ]
    assert exact == [True, False, False, False]


def wrong(llm, lengths, depths, seed) -> list[Found]:
    found = list(measure(llm, lengths, depths, seed))
    assert len(found) == len(lengths) * len(depths)
    return [one for one in found if not one.exact]


@needs_native
@pytest.mark.parametrize("kv_type", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_needles_are_found_exactly(quantize, kv_type) -> None:
    llm = retrieval_llm(4096, quantize, kv_type)
    assert wrong(llm, [400, 1023], DEPTHS[1::2], seed=1) == []
    assert wrong(llm, [4096], DEPTHS, seed=2) == []


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("kv_type", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_needles_are_found_exactly_in_32k(quantize, kv_type) -> None:
    llm = retrieval_llm(32_768, quantize, kv_type)
    assert wrong(llm, [32_768], DEPTHS, seed=3) == []


@needs_native
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_needles_are_found_exactly_in_all_of_the_context(kv_type) -> None:
    llm = retrieval_llm(262_144, "int8", kv_type)
    assert wrong(llm, [262_144], [0.0, 0.5, 1.0], seed=4) == []


@needs_native
def test_the_command_tells_what_was_found(capsys, tmp_path) -> None:
    words = ["--length", "500", "--length", "700", "--depth", "0.2", "--depth", "1"]
    assert run(["bench", "needle", *words, "--quantize", "int8", "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["exact"] is True
    assert [(one["length"], one["depth"]) for one in document["results"]] == [
        (500, 0.2), (500, 1.0), (700, 0.2), (700, 1.0)
    ]  # fmt: skip
    written = tmp_path / "needle-int8-auto-dense.json"
    assert json.loads(written.read_text()) == document
    assert "| 700 | exact | exact |" in written.with_suffix(".md").read_text()


def test_the_command_writes_a_folder(capsys, tmp_path) -> None:
    assert run(["bench", "needle", "--checkpoint", str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "made")
    assert (tmp_path / "made" / "model.safetensors").is_file()


def test_a_wrong_answer_is_seen_in_the_table() -> None:
    shown = table([Found(4096, 0.0, True, "v1", 2.0), Found(4096, 1.0, False, "v2", 0.1)])
    assert shown.splitlines()[-1] == "| 4,096 | exact | **wrong** | 2.0 | 2,048 |"
