"""The wording that generators draw from: JSON lines beside this file, read into one value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

Texts = Mapping[str, list[str]]  # language -> texts


@dataclass(frozen=True)
class Relation:
    """One attribute: how it is stated and asked for; `{s}` is whose it is, `{v}` its value."""

    id: str
    subject: str
    value: str
    statements: Texts
    questions: Texts


@dataclass(frozen=True)
class Lexicon:
    """Everything that is written in `lexicon/`; each entry holds both languages."""

    relations: tuple[Relation, ...]
    attributes: Mapping[str, list[str]]
    grammar: Mapping[str, Mapping[str, list[Any]]]  # language -> part of speech -> words
    facts: Mapping[str, Mapping[str, Any]]
    about_questions: Mapping[str, Texts]
    greetings: Mapping[str, Mapping[str, Mapping[str, list[str]]]]
    framing: Mapping[str, Texts]
    outside: Texts
    topics: Texts
    completions: Texts
    arithmetic_questions: Mapping[str, Texts]
    calculator: Mapping[str, Mapping[str, Any]]
    calculator_questions: Mapping[tuple[str, str], Texts]  # (kind, operation)


def load_lexicon() -> Lexicon:
    """Reads every file of `lexicon/`."""
    outside = _lines("outside")
    calculator = _lines("calculator")
    return Lexicon(
        relations=tuple(
            Relation(
                id=line["id"],
                subject=line["subject"],
                value=line["value"],
                statements={language: line[language]["statements"] for language in LANGUAGES},
                questions={language: line[language]["questions"] for language in LANGUAGES},
            )
            for name in ("relations_people", "relations_world", "relations_things")
            for line in _lines(name)
        ),
        attributes=_lines("attributes")[0],
        grammar={language: _lines(f"grammar_{language}")[0] for language in LANGUAGES},
        facts={line["id"]: line for line in _lines("facts")},
        about_questions={line["id"]: line for line in _lines("about_questions")},
        greetings={line["intent"]: line for line in _lines("greetings")},
        framing={line["kind"]: line for line in _lines("framing")},
        outside={
            language: [text for line in outside for text in line[language]]
            for language in LANGUAGES
        },
        topics=_lines("topics")[0],
        completions=_lines("completions")[0],
        arithmetic_questions={line["operation"]: line for line in _lines("arithmetic_questions")},
        calculator={line["kind"]: line for line in calculator if "operation" not in line},
        calculator_questions={
            (line["kind"], line["operation"]): line for line in calculator if "operation" in line
        },
    )


def han_characters() -> list[str]:
    """Every Han character and full-width mark of the lexicon, sorted: the tokenizer keeps them."""
    texts = (text for name in _names() for text in _file(name))
    return sorted(
        {c for c in "".join(texts) if "\u2e80" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"}
    )


def _names() -> list[str]:
    folder = resources.files(__package__) / "lexicon"
    return sorted(entry.name[:-6] for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


def _file(name: str) -> str:
    return (resources.files(__package__) / "lexicon" / f"{name}.jsonl").read_text("utf-8")


def _lines(name: str) -> list[Any]:
    return list(_parsed(_file(name)))


def _parsed(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        if line.strip():
            yield json.loads(line)
