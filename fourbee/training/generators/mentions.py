"""Drill: find the sentence that mentions a word, or two words, among sentences of no meaning.

The reading of `passages.py` with nothing to understand: what is learned is to compare the sentence
just copied with the question, which real passages teach only slowly.
"""

from __future__ import annotations

import random

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.passages import scanned
from fourbee.training.generators.sample import Sample, assistant, user

_ONE = {
    "en": (
        "Which sentence mentions {x}?", "Where is {x} mentioned?", 'Find "{x}".', "{x}?",
        "Which line has {x} in it?",
    ),
    "zh": ("哪一句提到{x}？", "哪里提到了{x}？", "找出“{x}”。", "{x}？", "哪一行有{x}？"),
}  # fmt: skip
_BOTH = {
    "en": (
        "Which sentence mentions {x} and {y}?", "Where do {x} and {y} stand together?", "{x} {y}?",
        "What is the {x} of {y}?",
    ),
    "zh": ("哪一句提到{x}和{y}？", "哪里同时有{x}和{y}？", "{x}{y}？", "{y}的{x}是什么？"),
}  # fmt: skip
_CUE = {"en": " (mark the words)", "zh": "（标出）"}


def mark_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A mention whose words are marked with a star wherever they are read.

    Each word is a decision of its own, one step of attention away; a verdict is one token in
    fifteen and asks for two steps (docs/log.md).
    """
    return _drill(rng, lexicon, Names(rng, language, unseen), marked=True)


def mention_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A mention as it is read by `passages.py`: a verdict after each row."""
    return _drill(rng, lexicon, Names(rng, language, unseen), marked=False)


def _drill(rng: random.Random, lexicon: Lexicon, names: Names, marked: bool) -> Sample:
    """Three to ten rows of words; one word (or a pair) that one of them alone holds, or none."""
    language = names.language
    words = _words(rng, lexicon, names, 30)
    both = rng.random() < 0.5
    # Rows of a word or two give the most verdicts a token: where comparing is learned first.
    short = rng.random() < 0.5
    count = rng.randint(4, 10) if short else rng.randint(3, 8)
    most = 1 if short else 5
    rows = [rng.sample(words[2:], rng.randint(1, most)) for _ in range(count)]
    x, y = words[:2]
    target = rng.randrange(count) if rng.random() < 0.8 else None
    if target is not None:
        _put(rng, rows[target], x)
        if both:
            _put(rng, rows[target], y)
    if both:  # near misses: sentences with one of the two
        for index in rng.sample(range(count), rng.randint(1, count - 1)):
            if index != target:
                _put(rng, rows[index], rng.choice((x, y)))
    mark, joiner = (".", " ") if language == "en" else ("。", "")
    sentences = [joiner.join(row) + mark for row in rows]
    question = rng.choice((_BOTH if both else _ONE)[language])
    question = question.replace("{x}", x).replace("{y}", y) + (_CUE[language] if marked else "")
    between = "\n" if rng.random() < 0.2 else joiner
    text = between.join(sentences)
    message = f"{text}\n\n{question}" if rng.random() < 0.75 else f"{question}\n\n{text}"
    found = None if target is None else sentences[target]
    answer = scanned(question, sentences, found, language)
    expect = {"kind": "last_line", "value": [answer.splitlines()[-1]]}
    if marked:
        asked = {x, y} if both else {x}
        starred = [joiner.join(w + "*" if w in asked else w for w in row) + mark for row in rows]
        first, *lines, last = answer.splitlines()
        read = zip(lines, sentences, starred, strict=False)
        answer = "\n".join([first, *(line.replace(a, b) for line, a, b in read), last])
    skill = "mark" if marked else "mention"
    return Sample(skill, language, (user(message), assistant(answer)), expect=expect)


def _words(rng: random.Random, lexicon: Lexicon, names: Names, count: int) -> list[str]:
    """Different words, made up or of the grammar."""
    grammar = lexicon.grammar[names.language]
    words: dict[str, None] = {}
    while len(words) < count:
        roll = rng.random()
        if roll < 0.5:
            word = rng.choice((names.noun, names.thing_name, names.person, names.number))()
        elif names.language == "en":
            word = rng.choice(rng.choice(grammar[rng.choice(("nouns", "verbs"))]))
        else:
            word = rng.choice((rng.choice(grammar["nouns"])[0], rng.choice(grammar["verbs"])))
        # No word may be part of another: which sentence holds it would be unclear.
        if not any(word in other or other in word for other in words):
            words[word] = None
    return list(words)


def _put(rng: random.Random, row: list[str], word: str) -> None:
    row.insert(rng.randint(0, len(row)), word)
