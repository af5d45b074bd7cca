"""Questions about a short passage: read through, the sentence that answers is quoted, or none is.

A passage is made of statements of attributes (`attributes.py`) about one to three made-up subjects;
most questions have a near miss in it: the same attribute of somebody else, another attribute of the
same subject.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fourbee.training.generators.attributes import draw_attribute
from fourbee.training.generators.grammar import Attribute
from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.sample import Message, Sample, assistant, user
from fourbee.training.generators.wording import dressed, noisy, with_passage

QUOTE = {"en": 'The text says: "{sentence}"', "zh": "文中说：“{sentence}”"}
SILENT = {"en": "The text does not say.", "zh": "文中没有提到。"}

ASKED = {"en": "Question: {question}", "zh": "问题：{question}"}
VERDICT = {
    ("en", True): '- "{sentence}" yes',
    ("en", False): '- "{sentence}" no',
    ("zh", True): "- “{sentence}”是",
    ("zh", False): "- “{sentence}”否",
}

_SUBJECTS = ("person", "organisation", "place", "thing", "event", "document", "animal", "project")
_COMPOSED = "composed"  # a subject of several words: "the museum of Lorin"


def scanned(question: str, sentences: Sequence[str], found: str | None, language: Language) -> str:
    """The answer: the question, then each sentence with a verdict, up to the one asked for.

    Copying is easy for a model of this size, and so is judging the sentence just copied by the
    question just repeated; going straight to the right one was not learned (docs/log.md).
    """
    lines = [ASKED[language].replace("{question}", question)]
    for sentence in sentences:
        lines.append(VERDICT[language, sentence == found].replace("{sentence}", sentence))
        if sentence == found:
            return "\n".join([*lines, QUOTE[language].replace("{sentence}", sentence)])
    return "\n".join([*lines, SILENT[language]])


@dataclass(frozen=True)
class Statement:
    """A sentence of a passage and what it states of whom."""

    attribute: Attribute
    subject: str
    sentence: str


@dataclass(frozen=True)
class Passage:
    """Statements in the order in which they are read."""

    statements: tuple[Statement, ...]
    kinds: dict[str, str]  # subject -> its kind
    text: str

    def states(self, attribute: Attribute, subject: str | None = None) -> bool:
        """Whether the attribute is stated (of this subject, if one is given)."""
        return any(
            one.attribute.id == attribute.id and subject in (None, one.subject)
            for one in self.statements
        )

    @property
    def sentences(self) -> list[str]:
        return [one.sentence for one in self.statements]


@dataclass(frozen=True)
class Question:
    """What is asked of a passage, and the sentence that answers or None."""

    text: str
    attribute: Attribute
    subject: str
    answer: str | None


def passage_sample(
    rng: random.Random,
    lexicon: Lexicon,
    language: Language,
    present: bool,
    unseen: bool = False,
) -> Sample:
    """A passage of 1 to 6 sentences and a question that it answers (`present`) or does not."""
    names = Names(rng, language, unseen)
    passage = draw_passage(rng, lexicon, names)
    turns, expect = _asked(rng, lexicon, names, passage, present, passage.text)
    skill = "passage" if present else "passage_absent"
    return Sample(skill, language, turns, expect=expect)


def passage_talk(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """Two to four questions about one passage, which the first turn holds."""
    names = Names(rng, language, unseen)
    passage = draw_passage(rng, lexicon, names)
    turns, expect = _asked(rng, lexicon, names, passage, rng.random() < 0.6, passage.text)
    for _ in range(rng.randint(1, 3)):
        more, expect = _asked(rng, lexicon, names, passage, rng.random() < 0.6, None)
        turns += more
    return Sample("passage_talk", language, turns, expect=expect)


def _asked(
    rng: random.Random,
    lexicon: Lexicon,
    names: Names,
    passage: Passage,
    present: bool,
    text: str | None,
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """One question and its answer as two turns, and what is expected; with the passage's text."""
    language = names.language
    question = draw_question(rng, lexicon, names, passage, present)
    asked = noisy(rng, question.text, language).strip()
    message = dressed(rng, lexicon, asked, language)
    if text is not None:
        message = with_passage(rng, lexicon, text, message, language)
    answer = scanned(asked, passage.sentences, question.answer, language)
    expect: dict[str, Any] = {"kind": "last_line", "value": [answer.splitlines()[-1]]}
    return (user(message), assistant(answer)), expect


def draw_passage(rng: random.Random, lexicon: Lexicon, names: Names) -> Passage:
    """Statements about one to three subjects; one attribute is often stated of two of them."""
    kinds = _subjects(rng, lexicon, names)
    stated: dict[tuple[str, str], Statement] = {}
    shared: dict[str, Attribute] = {}
    for _ in range(rng.randint(1, 6)):
        subject = rng.choice(list(kinds))
        kind = kinds[subject]
        attribute = shared.get(kind) if rng.random() < 0.45 else None
        attribute = attribute or draw_attribute(rng, lexicon, kind, names)
        shared[kind] = attribute
        if (attribute.id, subject) not in stated:
            template = rng.choice(attribute.statements)
            sentence = template.replace("{s}", subject)
            sentence = sentence.replace("{v}", names.value(attribute.value))
            sentence = sentence[0].upper() + sentence[1:]
            stated[attribute.id, subject] = Statement(attribute, subject, sentence)
    statements = list(stated.values())
    rng.shuffle(statements)
    joiner = "\n" if rng.random() < 0.08 else " " if names.language == "en" else ""
    text = joiner.join(one.sentence for one in statements)
    return Passage(tuple(statements), kinds, text)


def draw_question(
    rng: random.Random, lexicon: Lexicon, names: Names, passage: Passage, present: bool
) -> Question:
    """A question that one sentence of the passage answers (`present`), or none."""
    if not present:
        return _missing(rng, lexicon, names, passage)
    one = rng.choice(passage.statements)
    questions = one.attribute.questions
    alone = sum(other.attribute.id == one.attribute.id for other in passage.statements) == 1
    if alone and one.attribute.subject_questions and rng.random() < 0.35:
        questions = one.attribute.subject_questions
    return _question(rng, questions, one.attribute, one.subject, one.sentence)


def _question(
    rng: random.Random,
    templates: Sequence[str],
    attribute: Attribute,
    subject: str,
    answer: str | None = None,
) -> Question:
    return Question(rng.choice(templates).replace("{s}", subject), attribute, subject, answer)


def _subjects(rng: random.Random, lexicon: Lexicon, names: Names) -> dict[str, str]:
    """One to three names, each with its kind."""
    kinds = [rng.choice(_SUBJECTS) for _ in range(rng.choices((1, 2, 3), (4, 4, 2))[0])]
    if rng.random() < 0.3:
        kinds = [_COMPOSED] * len(kinds)
    elif rng.random() < 0.5:
        kinds = [kinds[0]] * len(kinds)
    return {
        _composed(rng, lexicon, names) if kind == _COMPOSED else names.subject(kind): kind
        for kind in kinds
    }


def _composed(rng: random.Random, lexicon: Lexicon, names: Names) -> str:
    """A subject of a common noun and a name."""
    noun = rng.choice(lexicon.grammar[names.language]["nouns"])[0]
    if names.language == "zh":
        return rng.choice(
            (f"{names.place()}{noun}", f"{names.place()}的{noun}", f"{names.thing_name()}{noun}",
             f"{names.thing_name()}牌{noun}", f"{names.person()}的{noun}")
        )  # fmt: skip
    return rng.choice(
        (f"the {noun} of {names.place()}", f"the {noun} of {names.person()}",
         f"the {names.thing_name()} {noun}", f"the {noun} {names.thing_name()}",
         f"{noun.capitalize()} {names.thing_name()}")
    )  # fmt: skip


def _missing(rng: random.Random, lexicon: Lexicon, names: Names, passage: Passage) -> Question:
    """A question about what is not stated of the subject asked for.

    About half of the time the subject occurs and lacks the attribute; else the attribute occurs,
    stated of somebody else or without the detail asked for: there the subject alone decides.
    """
    while True:
        known = rng.choice(passage.statements)
        roll = rng.random()
        if roll < 0.12 and known.attribute.silent_questions:
            silent = known.attribute.silent_questions
            return _question(rng, silent, known.attribute, known.subject)
        attribute, subject = known.attribute, known.subject
        if roll < 0.55:
            others = [one for one in passage.kinds if one != known.subject]
            kind = passage.kinds[known.subject]
            new = _composed(rng, lexicon, names) if kind == _COMPOSED else names.subject(kind)
            subject = rng.choice(others) if others and rng.random() < 0.6 else new
        else:
            attribute = draw_attribute(rng, lexicon, passage.kinds[subject], names)
        if not passage.states(attribute, subject):
            questions = attribute.questions
            if not passage.states(attribute):
                questions = questions + attribute.subject_questions
            return _question(rng, questions, attribute, subject)
