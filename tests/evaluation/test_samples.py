"""Scoring a model on samples: what it is asked, which answers count, and how they are grouped."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fourbee.engine.sampling import SamplingParams
from fourbee.evaluation.intervals import clustered, wilson
from fourbee.evaluation.samples import Answered, answer, prompt_ids, read_samples, shares
from fourbee.foundation.errors import UsageError

EXPECT = {"kind": "one_of", "value": ["yes"]}


class ScriptedLLM:
    """Answers what a prompt's text maps to; encodes text and messages as they are."""

    def __init__(self, script: dict[str, tuple[str, str]] | None = None) -> None:
        self.script = script or {}
        self.calls: list[tuple[list[Any], list[SamplingParams]]] = []
        self.engine = SimpleNamespace(context_length=1000)
        self.tokenizer = SimpleNamespace(encode=lambda text, control_tokens: ("text", text))
        self.chat_format = SimpleNamespace(encode=lambda messages, tools: ("chat", messages, tools))

    def generate(self, prompts: list[Any], params: list[SamplingParams]) -> list[Any]:
        self.calls.append((prompts, params))
        answers = [self.script.get(prompt[1], ("yes", "stop")) for prompt in prompts]
        return [SimpleNamespace(text=text, finish_reason=reason) for text, reason in answers]


def raw(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "expect": EXPECT, **more}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "samples.jsonl"

    def write(*lines: str | bytes):
        path.write_bytes(b"".join(x.encode() if isinstance(x, str) else x for x in lines))
        return path

    return write


# ---- reading


def test_at_most_so_many_of_each_skill_are_read_in_order(file):
    samples = [raw(str(index), skill="ab"[index % 2]) for index in range(10)]
    path = file(*(json.dumps(sample) + "\n" for sample in samples))
    assert read_samples(path, None) == samples
    assert read_samples(path, 2) == samples[:4]


def test_texts_may_hold_unicode_line_marks(file):
    path = file(json.dumps(raw("one\u2028two\x85"), ensure_ascii=False) + "\n")
    assert [sample["prompt"] for sample in read_samples(path, None)] == ["one\u2028two\x85"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops\n", "not valid JSON: Expecting property name enclosed in double quotes"),
        (b'{"prompt": "\xff"}\n', "not UTF-8 text"),
        ("[]\n", 'expected an object with the key "expect"'),
        ('{"prompt": "a"}\n', 'expected an object with the key "expect"'),
        ('{"prompt": "a", "expect": "yes"}\n', 'expected an object with the key "expect"'),
        ('{"expect": {}}\n', 'expected the key "messages" or "prompt"'),
        ('{"messages": [], "expect": {}}\n', 'expected the key "messages" or "prompt"'),
    ],
)
def test_a_line_that_is_no_sample_is_an_error_with_its_place(file, line, reason):
    path = file(json.dumps(raw("a")) + "\n", line)
    with pytest.raises(UsageError) as error:
        read_samples(path, None)
    assert str(error.value) == f"{path}:2: {reason}"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UsageError) as error:
        read_samples(tmp_path / "no.jsonl", None)
    assert str(error.value) == f"{tmp_path / 'no.jsonl'}: no such file"


# ---- asking


def test_a_conversation_is_asked_up_to_its_last_answer():
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    llm = ScriptedLLM()
    asked = (llm.tokenizer, llm.chat_format)
    assert prompt_ids(*asked, {"messages": turns}) == ("chat", turns[:3], None)
    assert prompt_ids(*asked, {"messages": turns[:3], "tools": []}) == ("chat", turns[:3], None)
    assert prompt_ids(*asked, {"messages": turns[:1], "tools": ["t"]}) == ("chat", turns[:1], ["t"])
    assert len(turns) == 4
    assert prompt_ids(*asked, {"prompt": "Once"}) == ("text", "Once")


def test_answers_come_in_order_in_batches_each_with_its_own_seed():
    llm, samples = ScriptedLLM({"17": ("no", "stop")}), [raw(str(index)) for index in range(40)]
    answers = list(answer(llm, samples, temperature=0.5, seed=100))
    assert [one.sample for one in answers] == samples
    assert [len(prompts) for prompts, _ in llm.calls] == [16, 16, 8]
    params = [one for _, several in llm.calls for one in several]
    assert [one.seed for one in params] == list(range(100, 140))
    assert {(one.temperature, one.max_tokens) for one in params} == {(0.5, 512)}
    assert [index for index, one in enumerate(answers) if not one.right] == [17]


def test_an_answer_that_did_not_end_by_itself_is_wrong():
    llm = ScriptedLLM({"long": ("yes", "length"), "bad": ("yes", "error")})
    answers = answer(llm, [raw("long"), raw("bad"), raw("good")], 0.0, 0)
    assert [(one.text, one.right) for one in answers] == [
        ("yes", False), ("yes", False), ("yes", True),
    ]  # fmt: skip


# ---- counting


def answered(right: bool, **sample: Any) -> Answered:
    return Answered(sample, "", right)


def test_shares_are_by_skill_and_independent_samples_have_wilsons_interval():
    answers = [answered(index < 3, skill="b") for index in range(4)]
    answers += [answered(True, skill="a"), answered(False)]
    found = shares(answers)
    assert list(found) == ["a", "all", "b"]
    assert found == {"a": wilson(1, 1), "all": wilson(0, 1), "b": wilson(3, 4)}


def test_samples_that_share_a_template_are_drawn_together():
    rights = [True, True, False, True, False, False]
    answers = [
        answered(right, skill="a", template=f"t{index // 2}") for index, right in enumerate(rights)
    ]
    assert shares(answers)["a"] == clustered([[True, True], [False, True], [False, False]])


def test_no_answers_are_no_shares():
    assert shares([]) == {}


def test_answers_stay_within_the_context():
    llm = ScriptedLLM()
    llm.engine.context_length = 100
    list(answer(llm, [raw("short")], temperature=0.0, seed=0))
    [(prompts, [params])] = llm.calls
    assert params.max_tokens == 100 - len(prompts[0])
