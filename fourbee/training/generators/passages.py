"""Questions about a short passage: read through, the sentence that answers is quoted, or none is.

Passages are made of statements of relations (lexicon) and of generic attributes ("the {n} of {s}"),
whose nouns may be made up, so that matching words is learned and not a list of relations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.sample import Sample, assistant, user
from fourbee.training.generators.wording import framed, with_passage

QUOTE = {"en": 'The text says: "{sentence}"', "zh": "文中说：“{sentence}”"}
SILENT = {"en": "The text does not say.", "zh": "文中没有提到。"}

VERDICT = {
    ("en", True): '- "{sentence}" yes',
    ("en", False): '- "{sentence}" no',
    ("zh", True): "- “{sentence}”是",
    ("zh", False): "- “{sentence}”否",
}

_SUBJECTS = ("person", "organisation", "place", "thing", "event", "document", "animal", "project")
_VALUES = ("number", "year", "date", "person", "place", "thing", "word", "color", "number", "money")


def scanned(sentences: Sequence[str], found: str | None, language: Language) -> str:
    """The answer: sentence after sentence with a verdict, up to the one that is asked for.

    Copying a sentence is easy for a model of this size, and so is judging the one just copied;
    going straight to the right one was not learned (docs/log.md).
    """
    lines = []
    for sentence in sentences:
        lines.append(VERDICT[language, sentence == found].replace("{sentence}", sentence))
        if sentence == found:
            return "\n".join([*lines, QUOTE[language].replace("{sentence}", sentence)])
    return "\n".join([*lines, SILENT[language]])


@dataclass(frozen=True)
class _Attribute:
    """What can be stated of a subject: an id, and templates in `{s}` and `{v}`."""

    id: str
    value: str
    statements: list[str]
    questions: list[str]


def passage_sample(
    rng: random.Random,
    lexicon: Lexicon,
    language: Language,
    present: bool,
    unseen: bool = False,
) -> Sample:
    """A passage of 1 to 6 sentences and a question that it answers (`present`) or does not."""
    names = Names(rng, language, unseen)
    subjects = _subjects(rng, names)
    stated = _statements(rng, lexicon, names, subjects)
    order = list(stated)
    rng.shuffle(order)
    joiner = "\n" if rng.random() < 0.08 else " " if language == "en" else ""
    passage = joiner.join(stated[key] for key in order)
    key = rng.choice(order)
    asked, subject = _known(lexicon, language, key)
    if not present:
        asked, subject = _missing(rng, lexicon, language, stated, subjects, names)
    question = rng.choice(asked.questions).replace("{s}", subject)
    text = with_passage(rng, lexicon, passage, framed(rng, lexicon, question, language), language)
    found = stated[key] if present else None
    answer = scanned([stated[one] for one in order], found, language)
    expect = {"kind": "last_line", "value": [answer.splitlines()[-1]]}
    skill = "passage" if present else "passage_absent"
    return Sample(skill, language, (user(text), assistant(answer)), expect=expect)


_Key = tuple[str, str]  # (attribute id, subject)


def _subjects(rng: random.Random, names: Names) -> dict[str, str]:
    """One to three names, each with its kind."""
    kinds = [rng.choice(_SUBJECTS) for _ in range(rng.choices((1, 2, 3), (4, 4, 2))[0])]
    if rng.random() < 0.5:
        kinds = [kinds[0]] * len(kinds)
    return {names.subject(kind): kind for kind in kinds}


def _statements(
    rng: random.Random, lexicon: Lexicon, names: Names, subjects: dict[str, str]
) -> dict[_Key, str]:
    """Sentences by (attribute, subject); one attribute is often stated of two subjects."""
    stated: dict[_Key, str] = {}
    shared: dict[str, _Attribute] = {}
    for _ in range(rng.randint(1, 6)):
        subject = rng.choice(list(subjects))
        kind = subjects[subject]
        attribute = shared.get(kind) if rng.random() < 0.3 else None
        attribute = attribute or _attribute(rng, lexicon, names.language, kind, names)
        shared[kind] = attribute
        if (attribute.id, subject) not in stated:
            template = rng.choice(attribute.statements)
            value = names.value(attribute.value)
            stated[attribute.id, subject] = template.replace("{s}", subject).replace("{v}", value)
    return stated


def _attribute(
    rng: random.Random, lexicon: Lexicon, language: Language, kind: str, names: Names | None
) -> _Attribute:
    """A relation of this kind of subject, or (a third) a generic attribute."""
    relations = [one for one in lexicon.relations if one.subject == kind]
    if relations and rng.random() < 0.68:
        one = rng.choice(relations)
        return _Attribute(one.id, one.value, one.statements[language], one.questions[language])
    noun = rng.choice(lexicon.attributes[language])
    if names is not None and rng.random() < 0.15:
        noun = names.noun()
    return _generic(rng, lexicon, language, noun)


def _generic(
    rng: random.Random | None, lexicon: Lexicon, language: Language, noun: str
) -> _Attribute:
    value = rng.choice(_VALUES) if rng else ""
    statements = [s.replace("{n}", noun) for s in lexicon.attributes[f"statements_{language}"]]
    questions = [q.replace("{n}", noun) for q in lexicon.attributes[f"questions_{language}"]]
    return _Attribute(f"n:{noun}", value, statements, questions)


def _known(lexicon: Lexicon, language: Language, key: _Key) -> tuple[_Attribute, str]:
    """The attribute and subject of a stated sentence."""
    attribute_id, subject = key
    if attribute_id.startswith("n:"):
        return _generic(None, lexicon, language, attribute_id[2:]), subject
    one = next(one for one in lexicon.relations if one.id == attribute_id)
    return _Attribute(one.id, one.value, one.statements[language], one.questions[language]), subject


def _missing(
    rng: random.Random,
    lexicon: Lexicon,
    language: Language,
    stated: dict[_Key, str],
    subjects: dict[str, str],
    names: Names,
) -> tuple[_Attribute, str]:
    """An attribute that is not stated of the subject asked for.

    Mostly the subject occurs and lacks the attribute; else the attribute occurs, stated of somebody
    else, or neither does.
    """
    while True:
        subject = rng.choice([subject for _, subject in stated])
        kind = subjects[subject]
        attribute = _attribute(rng, lexicon, language, kind, names)
        if rng.random() < 0.3:
            key = rng.choice(list(stated))
            attribute, known = _known(lexicon, language, key)
            others = [one for one in subjects if one != known]
            subject = rng.choice(others) if others else names.subject(subjects[known])
        if (attribute.id, subject) not in stated:
            return attribute, subject
