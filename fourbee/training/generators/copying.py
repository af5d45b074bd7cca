"""Copy drills: repeat a span that was never seen before.

Copying is a skill that appears at once or not at all in a model of this size, and everything that
quotes stands on it; hence a drill of its own (docs/log.md).
"""

from __future__ import annotations

import random

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.sample import Sample, assistant, user

_ASK = {
    "en": (
        'Repeat: "{span}"', "Repeat after me: {span}", 'Say exactly this: "{span}"', "Copy: {span}",
        "Write this again: {span}", "Echo: {span}", "Please repeat the following text:\n{span}",
        "{span}\n\nRepeat the text above.",
    ),
    "zh": (
        "重复：“{span}”", "跟我说：{span}", "请原样重复：{span}", "复述：{span}", "抄写：{span}",
        "请重复下面的文字：\n{span}", "{span}\n\n重复上面的文字。",
    ),
}  # fmt: skip
_PICK = {
    "en": (
        'Repeat the line that begins with "{key}".',
        'Which line starts with "{key}"?',
        'Copy the line with "{key}".',
        'Find "{key}" and repeat its line.',
    ),
    "zh": ("重复以“{key}”开头的那一行。", "哪一行有“{key}”？", "抄写含有“{key}”的那一行。"),
}


def copy_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A span to repeat, or several lines of which the one with a given word is to be repeated."""
    names = Names(rng, language, unseen)
    if rng.random() < 0.5:
        span = _span(rng, names)
        question = rng.choice(_ASK[language]).replace("{span}", span)
        answer = span
    else:
        lines = [_span(rng, names) for _ in range(rng.randint(2, 4))]
        answer = rng.choice(lines)
        pieces = answer.split(" ") if " " in answer else [answer[:2]]
        keys = [key for key in pieces if sum(key in line for line in lines) == 1] or [answer]
        key = keys[0] if rng.random() < 0.5 else rng.choice(keys)
        ask = rng.choice(_PICK[language]).replace("{key}", key)
        text = "\n".join(lines)
        question = f"{text}\n\n{ask}" if rng.random() < 0.6 else f"{ask}\n\n{text}"
    expect = {"kind": "one_of", "value": [answer]}
    return Sample("copy", language, (user(question), assistant(answer)), expect=expect)


def repeat_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A raw text that is one span again and again: all but its first time can be copied."""
    span = _span(rng, Names(rng, language, unseen))
    joiner = rng.choice(("\n", " ", " | ", "; "))
    count = rng.randint(2, 4)
    return Sample("repeat", language, prompt=span, completion=(joiner + span) * count)


def _span(rng: random.Random, names: Names) -> str:
    count = rng.randint(2, 10)
    if names.language == "zh" and rng.random() < 0.8:
        parts = [names.noun() if rng.random() < 0.8 else names.number() for _ in range(count)]
        marks = [rng.choice(("", "", "", "，", "的", "、")) for _ in parts]
        return "".join(part + mark for part, mark in zip(parts, marks, strict=True)).rstrip("，、")
    makers = (names.word, names.word, names.word, names.person, names.number, names.date)
    return " ".join(rng.choice(makers)() for _ in range(count))
