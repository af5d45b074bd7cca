"""Fills templates that were written by somebody who has not seen the generators into samples.

The templates (JSON lines, one file a skill) are never trained on; `{S1}`, `{a}`, ... get made-up
names and numbers from the pools that training never sees.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import UsageError
from fourbee.training.generators.arithmetic import operands, result
from fourbee.training.generators.conversation import BEYOND
from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.passages import scanned
from fourbee.training.generators.sample import Sample, user
from fourbee.training.generators.tool_use import evaluated, function_tool

_SLOT = re.compile(r"\{([A-Z]\d|[ab])\}")
_GREETING = {
    "hello": {"en": "Hello", "zh": "你好"},
    "how_are_you": {"en": "fine", "zh": "很好"},
    "thanks": {"en": "welcome", "zh": "不客气"},
    "bye": {"en": "Goodbye", "zh": "再见"},
}

Template = Mapping[str, Any]
Slots = dict[str, str]


def fill_templates(folder: Path, lexicon: Lexicon, fills: int, seed: int) -> Iterator[Sample]:
    """`fills` samples of each template that has slots, one of each that has none."""
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem not in _FILLERS:
            raise UsageError(f"{path}: expected a file named {', '.join(_FILLERS)}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            template = json.loads(line)
            name = f"{path.stem}:{number}"
            for fill in range(fills if _SLOT.search(line) else 1):
                rng = random.Random(f"{seed}/{name}/{fill}")
                sample = _FILLERS[path.stem](rng, lexicon, template)
                yield Sample(**(vars(sample) | {"template": name}))


def _greeting(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    language = template["language"]
    expect = {"kind": "contains", "value": [_GREETING[template["intent"]][language]]}
    return Sample("greeting", language, (user(template["message"]),), expect=expect)


def _about(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    language, fact = template["language"], lexicon.facts[template["fact"]]
    expect = {"kind": "contains", "value": fact.get(f"must_{language}", fact.get("must"))}
    return Sample("about", language, (user(template["question"]),), expect=expect)


def _arithmetic(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    a, b = operands(rng, template["operation"])
    if template["operation"] == "*" and a < 10:
        a += 10
    a, b = (max(a, b), min(a, b)) if template["operation"] == "-" else (a, b)
    question = _filled(template["question"], {"a": str(a), "b": str(b)})
    expect = {"kind": "number", "value": result(template["operation"], a, b)}
    return Sample("arithmetic", template["language"], (user(question),), expect=expect)


def _passage(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    language = template["language"]
    text = json.dumps(template, ensure_ascii=False)
    slots = _slots(rng, language, text)
    sentences = [_filled(sentence, slots) for sentence in template["sentences"]]
    passage = (" " if language == "en" else "").join(sentences)
    question = _filled(template["question"], slots)
    prompt = template["prompt"].replace("{passage}", passage).replace("{question}", question)
    answer = template["answer"]
    found = sentences[answer] if answer is not None else None
    last = scanned(question, sentences, found, language).splitlines()[-1]
    expect = {"kind": "last_line", "value": [last]}
    skill = "passage" if answer is not None else "passage_absent"
    return Sample(skill, language, (user(prompt),), expect=expect)


def _tools(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    tool, operation = template["tool"], template["operation"]
    a, b = rng.randint(12, 9999), rng.randint(2, 999)
    if operation == "/":
        a = b * rng.randint(2, 40)
    a, b = (max(a, b), min(a, b)) if operation in "-/" else (a, b)
    question = _filled(template["question"], {"a": str(a), "b": str(b)})
    tools = (function_tool(tool["name"], tool["description"], tool["argument"], rng),)
    value = evaluated(f"{a}{operation}{b}")
    expect = {"kind": "call", "name": tool["name"], "value": value}
    return Sample("tool_call", template["language"], (user(question),), tools, expect=expect)


def _refusal(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    language = template["language"]
    expect = {"kind": "one_of", "value": [BEYOND[language]]}
    return Sample("refusal", language, (user(template["question"]),), expect=expect)


def _completion(rng: random.Random, lexicon: Lexicon, template: Template) -> Sample:
    language = template["language"]
    expect = {"kind": "one_of", "value": [BEYOND[language]]}
    return Sample("completion", language, prompt=template["prompt"], expect=expect)


def _slots(rng: random.Random, language: Language, text: str) -> Slots:
    """A value for each slot in `text`, no two alike."""
    names = Names(rng, language, unseen=True)
    makers: dict[str, Callable[[], str]] = {
        "S": names.thing_name,
        "P": names.person,
        "L": names.place,
        "W": names.noun,
        "N": lambda: str(rng.randint(2, 999)),
        "Y": lambda: str(rng.randint(1500, 2050)),
    }
    slots: Slots = {}
    for slot in sorted(set(_SLOT.findall(text))):
        value = makers[slot[0]]()
        while value in slots.values():
            value = makers[slot[0]]()
        slots[slot] = value
    return slots


def _filled(text: str, slots: Slots) -> str:
    return _SLOT.sub(lambda match: slots[match[1]], text)


_FILLERS: Mapping[str, Callable[[random.Random, Lexicon, Template], Sample]] = {
    "greetings": _greeting,
    "about": _about,
    "arithmetic": _arithmetic,
    "passage": _passage,
    "tools": _tools,
    "refusal": _refusal,
    "completion": _completion,
}
