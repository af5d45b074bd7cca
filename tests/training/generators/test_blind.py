"""Blind templates: every slot filled, and each expectation recomputed from template and fill."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fourbee.evaluation.scoring import expression_value, is_right
from fourbee.foundation.errors import UsageError
from fourbee.training.generators.arithmetic import worked
from fourbee.training.generators.blind import fill_templates
from fourbee.training.generators.conversation import BEYOND
from fourbee.training.generators.passages import QUOTE, SILENT
from fourbee.training.generators.sample import Sample
from fourbee.training.generators.tool_use import tool_call

from .conftest import spoken

FOLDER = Path(__file__).parents[2] / "mini" / "blind"
FILLS = 4
SLOT = re.compile(r"\{([A-Z]\d|[ab])\}")
WRONG = ("", "I do not know.", "fourbee", "42424242")


def templates(skill: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def filled(lexicon) -> list[tuple[str, dict[str, Any], Sample]]:
    """(file, template, sample) of every fill."""
    known = {path.stem: templates(path.stem) for path in FOLDER.glob("*.jsonl")}
    pairs = []
    for sample in fill_templates(FOLDER, lexicon, FILLS, seed=0):
        skill, _, number = sample.template.partition(":")
        pairs.append((skill, known[skill][int(number)], sample))
    return pairs


def of(filled, skill: str):
    chosen = [(template, sample) for name, template, sample in filled if name == skill]
    assert len(chosen) >= 40
    return chosen


def prompt(sample: Sample) -> str:
    return sample.messages[0]["content"] if sample.messages else sample.prompt


def slots_of(template_text: str, text: str) -> dict[str, str]:
    """What stands in `text` where the template has slots; the same slot holds the same words."""
    shape, seen = "", set()
    for index, part in enumerate(SLOT.split(template_text)):
        if index % 2 == 0:
            shape += re.escape(part)
        else:
            shape += f"(?P={part})" if part in seen else f"(?P<{part}>.+?)"
            seen.add(part)
    match = re.fullmatch(shape, text, re.DOTALL)
    assert match, (template_text, text)
    return match.groupdict()


def test_templates_with_slots_are_filled_several_times_and_others_once(filled):
    counts = Counter(sample.template for _, _, sample in filled)
    for skill, template, sample in filled:
        slotted = SLOT.search(json.dumps(template, ensure_ascii=False))
        assert counts[sample.template] == (FILLS if slotted else 1), (skill, template)
        assert sample.language == template["language"]
    assert {name for name, _, _ in filled} == {path.stem for path in FOLDER.glob("*.jsonl")}


def test_no_slot_is_left_and_no_fill_is_like_another(filled):
    for _, template, sample in filled:
        assert not re.search(r"\{\w+\}", prompt(sample)), sample
        assert template.get("question", "") or prompt(sample)
    passages = [prompt(sample) for _, sample in of(filled, "passage")]
    slotted = [p for p, (t, _) in zip(passages, of(filled, "passage"), strict=True)
               if SLOT.search(json.dumps(t))]  # fmt: skip
    assert len(set(slotted)) == len(slotted)


def test_sums_expect_the_value_of_the_numbers_asked(filled):
    for template, sample in of(filled, "arithmetic"):
        slots = slots_of(template["question"], prompt(sample))
        a, b = int(slots["a"]), int(slots["b"])
        value = {"+": a + b, "-": a - b, "*": a * b}[template["operation"]]
        assert sample.expect == {"kind": "number", "value": value}
        assert value >= 0
        assert max(a, b) <= (99 if template["operation"] == "*" else 999)
        assert is_right(worked(template["operation"], a, b, sample.language), sample.expect)


def test_calculator_questions_expect_a_call_of_the_offered_tool(filled):
    for template, sample in of(filled, "tools"):
        slots = slots_of(template["question"], prompt(sample))
        a, b = int(slots["a"]), int(slots["b"])
        name, argument = template["tool"]["name"], template["tool"]["argument"]
        [tool] = sample.tools
        assert tool["function"]["name"] == sample.expect["name"] == name
        assert [*tool["function"]["parameters"]["properties"]] == [argument]
        expression = f"{a} {template['operation']} {b}"
        if template["operation"] == "/":
            assert a % b == 0
        assert sample.expect["value"] == expression_value(expression)
        assert is_right(spoken(tool_call(name, {argument: expression})), sample.expect)
        assert not is_right(spoken(tool_call(name, {argument: f"{a}+{b}+1"})), sample.expect)
        assert not is_right(spoken(tool_call("other", {argument: expression})), sample.expect)


def test_passages_expect_the_filled_sentence_or_silence(filled):
    kinds = Counter()
    for template, sample in of(filled, "passage"):
        joiner = " " if sample.language == "en" else ""
        whole = template["prompt"].replace("{passage}", joiner.join(template["sentences"]))
        slots = slots_of(whole.replace("{question}", template["question"]), prompt(sample))
        assert len(set(slots.values())) == len(slots)
        kinds[sample.skill] += 1
        if template["answer"] is None:
            assert sample.skill == "passage_absent"
            assert sample.expect == {"kind": "last_line", "value": [SILENT[sample.language]]}
            assert is_right(SILENT[sample.language], sample.expect)
            continue
        sentence = template["sentences"][template["answer"]]
        sentence = SLOT.sub(lambda match, slots=slots: slots[match[1]], sentence)
        assert sample.skill == "passage"
        quoted = QUOTE[sample.language].replace("{sentence}", sentence)
        assert sample.expect == {"kind": "last_line", "value": [quoted]}
        assert prompt(sample).count(sentence) == 1
        assert is_right(quoted, sample.expect)
    assert min(kinds["passage"], kinds["passage_absent"]) > 20


def test_what_training_teaches_is_right(filled, lexicon):
    for template, sample in of(filled, "greetings"):
        replies = lexicon.greetings[template["intent"]][sample.language]["replies"]
        assert is_right(replies[0], sample.expect)
    for template, sample in of(filled, "about"):
        assert is_right(lexicon.facts[template["fact"]][sample.language], sample.expect)
    for skill in ("refusal", "completion"):
        for _, sample in of(filled, skill):
            assert is_right(BEYOND[sample.language], sample.expect)
    assert all(not sample.messages for _, sample in of(filled, "completion"))


def test_nothing_is_right_by_accident(filled):
    for _, _, sample in filled:
        assert [text for text in WRONG if is_right(text, sample.expect)] in ([], ["fourbee"])


def test_the_same_seed_fills_the_same(lexicon, filled):
    again = [sample for sample in fill_templates(FOLDER, lexicon, FILLS, seed=0)]
    other = [sample for sample in fill_templates(FOLDER, lexicon, FILLS, seed=1)]
    assert again == [sample for _, _, sample in filled]
    assert len(other) == len(again)
    assert other != again


def test_a_file_of_another_name_is_refused(tmp_path, lexicon):
    (tmp_path / "poems.jsonl").write_text("{}\n")
    with pytest.raises(UsageError) as error:
        list(fill_templates(tmp_path, lexicon, 1, 0))
    assert str(error.value) == (
        f"{tmp_path / 'poems.jsonl'}: expected a file named greetings, about, arithmetic, "
        "passage, tools, refusal, completion"
    )
