"""A sentence grammar: clauses of everyday words, many thousands of them, with their questions.

Relations that are listed one by one are learned by heart. Here verb, object, place and time are
drawn word by word (some are made up), so that what is learned is to match a question's words with a
sentence's, whatever they are. Meaning is not sought: only that a question has one answer.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fourbee.training.generators.names import Names

# Share of verbs and nouns that are made up.
_MADE_UP = 0.12


@dataclass(frozen=True)
class Attribute:
    """One thing that can be stated of a subject; templates hold `{s}` (subject) and `{v}` (value).

    `questions` name the subject and are answered by any of `statements`; `subject_questions` ask
    for the subject itself; `silent_questions` ask for what the statements leave out.
    """

    id: str  # alike for attributes whose sentences can be taken for each other's
    value: str  # kind of value, see `Names.value`
    statements: list[str]
    questions: list[str]
    subject_questions: list[str] = field(default_factory=list)
    silent_questions: list[str] = field(default_factory=list)


class Grammar(ABC):
    """Draws clauses about one kind of subject; a language says how they are worded."""

    def __init__(
        self, rng: random.Random, words: Mapping[str, list[Any]], names: Names, kind: str
    ) -> None:
        self.rng, self.words, self.names, self.kind = rng, words, names, kind

    def clause(self) -> Attribute:
        """One clause of a random form."""
        forms: tuple[Callable[[], Attribute], ...] = (
            self._action, self._action, self._action, self._done_to, self._done_to, self._owned,
            self._role, self._quality, self._routine,
        )  # fmt: skip
        return self.rng.choice(forms[:-1] if self.kind == "person" else forms)()

    @abstractmethod
    def _action(self) -> Attribute:
        """The subject does something to an object, somewhere, some time."""

    @abstractmethod
    def _done_to(self) -> Attribute:
        """Something of the subject's is acted upon, by somebody or some time."""

    @abstractmethod
    def _owned(self) -> Attribute:
        """The subject has so many of something."""

    @abstractmethod
    def _role(self) -> Attribute:
        """Somebody has a post at the subject."""

    @abstractmethod
    def _quality(self) -> Attribute:
        """Something of the subject's is of some kind."""

    @abstractmethod
    def _routine(self) -> Attribute:
        """Something is done there regularly."""


class EnglishGrammar(Grammar):
    """Attributes in English."""

    def _verb(self) -> tuple[str, str, str, str]:
        if self.rng.random() < _MADE_UP:
            word = self.names.word(1)
            return word, word + "s", word + "ed", word + "ed"
        base, third, past, participle = self.rng.choice(self.words["verbs"])
        return base, third, past, participle

    def _noun(self) -> tuple[str, str]:
        if self.rng.random() < _MADE_UP:
            word = self.names.word()
            return word, word + "s"
        one, many = self.rng.choice(self.words["nouns"])
        return one, many

    def _adjective(self, share: float) -> str:
        return self.rng.choice(self.words["adjectives"]) + " " if self.rng.random() < share else ""

    def _action(self) -> Attribute:
        rng, person = self.rng, self.kind == "person"
        base, third, past, _ = self._verb()
        noun, nouns = self._noun()
        counted = rng.random() < 0.25
        adjective = self._adjective(0.3)
        thing = f"{{v}} {adjective}{nouns}" if counted else f"the {adjective}{noun}"
        if not counted and rng.random() < 0.3:
            first = (adjective or noun)[0]
            thing = f"{'an' if first in 'aeiou' else 'a'} {adjective}{noun}"
        place = " " + rng.choice(self.words["place"]) if rng.random() < 0.35 else ""
        year = not counted and rng.random() < 0.3
        time = " in {v}" if year else ""
        if not year and rng.random() < 0.3:
            time = " " + rng.choice(self.words["time"])
        extra = " " + rng.choice(self.words["purpose"]) if rng.random() < 0.15 else ""
        present = rng.random() < 0.35 and not year
        verb, do = (third, "does") if present else (past, "did")
        named = f"the {nouns}" if counted else f"the {noun}"
        statements = [f"{{s}} {verb} {thing}{extra}{place}{time}."]
        if year:
            statements.append(f"In {{v}}, {{s}} {verb} {thing}{extra}{place}.")
        questions = [f"What {do} {{s}} {base}?", f"Tell me what {{s}} {verb}."]
        questions += [f"What {do} {{s}} {base}{place}?"] * bool(place)
        questions += [f"How many {nouns} {do} {{s}} {base}?"] * (3 * counted)
        where = [f"Where {do} {{s}} {base} {named}?"]
        when = [f"When {do} {{s}} {base} {named}?"]
        when += [f"In which year {do} {{s}} {base} {named}?"] * year
        return Attribute(
            f"a:{base}", "year" if year else "count", statements,
            questions + (2 * where if place else []) + (2 * when if time else []),
            [f"{'Who' if person else 'What'} {verb} {named}?"],
            ([] if place else where) + ([] if time else when[:1]),
        )  # fmt: skip

    def _done_to(self) -> Attribute:
        rng = self.rng
        base, _, past, participle = self._verb()
        noun, _ = self._noun()
        owned = f"the {noun} of {{s}}" if rng.random() < 0.7 else f"{{s}}'s {noun}"
        by_whom = [
            f"Who {past} {owned}?", f"By whom was {owned} {participle}?",
            f"Tell me who {past} {owned}.",
        ]  # fmt: skip
        when = [
            f"When was {owned} {participle}?", f"In what year was {owned} {participle}?",
            f"What year was {owned} {participle}?",
        ]  # fmt: skip
        place = " " + rng.choice(self.words["place"]) if rng.random() < 0.2 else ""
        if rng.random() < 0.5:
            statements = [
                f"{owned} was {participle}{place} by {{v}}.", f"{{v}} {past} {owned}{place}.",
            ]  # fmt: skip
            return Attribute(f"d:{base}:{noun}", "person", statements, by_whom, [], when[:1])
        statements = [
            f"{owned} was {participle}{place} in {{v}}.", f"In {{v}}, {owned} was {participle}.",
        ]  # fmt: skip
        return Attribute(f"d:{base}:{noun}", "year", statements, when, [], by_whom[:1])

    def _owned(self) -> Attribute:
        noun, nouns = self._noun()
        statements = [
            f"{{s}} has {{v}} {self._adjective(0.2)}{nouns}.", f"{{s}} counts {{v}} {nouns}.",
        ]  # fmt: skip
        questions = [
            f"How many {nouns} does {{s}} have?", f"Tell me how many {nouns} {{s}} has.",
        ]  # fmt: skip
        if self.kind != "person":
            statements.append(f"There are {{v}} {nouns} at {{s}}.")
            questions.append(f"How many {nouns} are there at {{s}}?")
            questions.append(f"What is the number of {nouns} at {{s}}?")
        return Attribute(f"h:{noun}", "count", statements, questions)

    def _role(self) -> Attribute:
        role = self.rng.choice(self.words["roles"])
        statements = [
            f"{{v}} is the {role} of {{s}}.", f"The {role} of {{s}} is {{v}}.",
            f"{{v}} works as the {role} of {{s}}.", f"The {role} of {{s}} is called {{v}}.",
        ]  # fmt: skip
        questions = [
            f"Who is the {role} of {{s}}?", f"What is the name of the {role} of {{s}}?",
            f"Who is {{s}}'s {role}?", f"Tell me the name of the {role} of {{s}}.",
        ]  # fmt: skip
        return Attribute(f"n:{role}", "person", statements, questions)

    def _quality(self) -> Attribute:
        noun, _ = self._noun()
        adjective = self.rng.choice(self.words["adjectives"])
        article = "an" if adjective[0] in "aeiou" else "a"
        statements = [
            f"The {noun} of {{s}} is {adjective}.", f"{{s}} has {article} {adjective} {noun}.",
        ]  # fmt: skip
        questions = [
            f"What is the {noun} of {{s}} like?", f"What kind of {noun} does {{s}} have?",
            f"How does the {noun} of {{s}} look?",
        ]  # fmt: skip
        return Attribute(f"n:{noun}", "count", statements, questions)

    def _routine(self) -> Attribute:
        base, _, _, participle = self._verb()
        _, nouns = self._noun()
        time = self.rng.choice(self.words["time"])
        statements = [
            f"{nouns} are {participle} at {{s}} {time}.",
            f"At {{s}}, {nouns} are {participle} {time}.",
        ]
        questions = [
            f"When are {nouns} {participle} at {{s}}?", f"What is {participle} at {{s}}?",
            f"When can one {base} {nouns} at {{s}}?", f"What do people {base} at {{s}}?",
        ]  # fmt: skip
        return Attribute(f"t:{base}", "count", statements, questions)


class ChineseGrammar(Grammar):
    """Attributes in Chinese."""

    def _verb(self) -> str:
        if self.rng.random() < _MADE_UP / 2:
            return self.names.noun()
        verb: str = self.rng.choice(self.words["verbs"])
        return verb

    def _noun(self) -> tuple[str, str]:
        if self.rng.random() < _MADE_UP:
            return self.names.noun(), "个"
        noun, measure = self.rng.choice(self.words["nouns"])
        return noun, measure

    def _adjective(self, share: float) -> str:
        adjective: str = self.rng.choice(self.words["adjectives"])
        return adjective if self.rng.random() < share else ""

    def _action(self) -> Attribute:
        rng = self.rng
        verb = self._verb()
        noun, measure = self._noun()
        counted = rng.random() < 0.25
        thing = self._adjective(0.3) + noun
        if counted:
            thing = "{v}" + measure + thing
        elif rng.random() < 0.35:
            thing = "一" + measure + thing
        place = "在" + rng.choice(self.words["place"]) if rng.random() < 0.35 else ""
        year = not counted and rng.random() < 0.3
        time = "在{v}年" if year else ""
        if not year and rng.random() < 0.3:
            time = rng.choice(self.words["time"])
        extra = rng.choice(self.words["purpose"]) if rng.random() < 0.15 else ""
        statements = [f"{{s}}{time}{place}{extra}{verb}了{thing}。"]
        if time:
            statements.append(f"{time.removeprefix('在')}，{{s}}{place}{extra}{verb}了{thing}。")
        questions = [f"{{s}}{verb}了什么？", f"告诉我{{s}}{verb}了什么。"]
        questions += [f"{{s}}{place}{verb}了什么？"] * bool(place)
        questions += [f"{{s}}{verb}了多少{measure}{noun}？"] * (3 * counted)
        where = [f"{{s}}在哪里{verb}了{noun}？", f"{{s}}是在什么地方{verb}{noun}的？"]
        when = [f"{{s}}什么时候{verb}了{noun}？", f"{{s}}是何时{verb}{noun}的？"]
        if year:
            when.append(f"{{s}}哪一年{verb}了{noun}？")
        return Attribute(
            f"a:{verb}", "year" if year else "count", statements,
            questions + (where if place else []) + (when if time else []),
            [f"谁{verb}了{noun}？" if self.kind == "person" else f"是谁{verb}了{noun}？"],
            ([] if place else where[:1]) + ([] if time else when[:1]),
        )  # fmt: skip

    def _done_to(self) -> Attribute:
        verb, (noun, _) = self._verb(), self._noun()
        owned = f"{{s}}的{noun}"
        by_whom = [f"谁{verb}了{owned}？", f"{owned}是谁{verb}的？", f"告诉我谁{verb}了{owned}。"]
        when = [
            f"{owned}是哪一年{verb}的？",
            f"{owned}什么时候{verb}的？",
            f"{owned}何时被{verb}？",
        ]
        if self.rng.random() < 0.5:
            statements = [f"{owned}是{{v}}{verb}的。", f"{{v}}{verb}了{owned}。"]
            return Attribute(f"d:{verb}:{noun}", "person", statements, by_whom, [], when[:1])
        statements = [f"{owned}是{{v}}年{verb}的。", f"{{v}}年，{owned}被{verb}了。"]
        return Attribute(f"d:{verb}:{noun}", "year", statements, when, [], by_whom[:1])

    def _owned(self) -> Attribute:
        noun, measure = self._noun()
        statements = [
            f"{{s}}有{{v}}{measure}{self._adjective(0.2)}{noun}。",
            f"{{s}}一共有{{v}}{measure}{noun}。", f"{{s}}的{noun}共有{{v}}{measure}。",
        ]  # fmt: skip
        questions = [
            f"{{s}}有多少{measure}{noun}？", f"{{s}}有几{measure}{noun}？",
            f"{{s}}一共有多少{noun}？", f"{{s}}的{noun}有多少？",
        ]  # fmt: skip
        return Attribute(f"h:{noun}", "count", statements, questions)

    def _role(self) -> Attribute:
        role = self.rng.choice(self.words["roles"])
        statements = [
            f"{{v}}是{{s}}的{role}。", f"{{s}}的{role}是{{v}}。", f"{{s}}的{role}名叫{{v}}。",
            f"{{v}}担任{{s}}的{role}。",
        ]  # fmt: skip
        questions = [
            f"谁是{{s}}的{role}？", f"{{s}}的{role}是谁？", f"{{s}}的{role}叫什么名字？",
            f"{{s}}的{role}由谁担任？",
        ]  # fmt: skip
        return Attribute(f"n:{role}", "person", statements, questions)

    def _quality(self) -> Attribute:
        noun, measure = self._noun()
        adjective = self._adjective(1.0)
        statements = [
            f"{{s}}有一{measure}{adjective}{noun}。",
            f"{{s}}的{noun}是{adjective.rstrip('的')}的。",
        ]
        questions = [
            f"{{s}}有什么样的{noun}？", f"{{s}}的{noun}是什么样的？", f"{{s}}的{noun}怎么样？",
        ]  # fmt: skip
        return Attribute(f"n:{noun}", "count", statements, questions)

    def _routine(self) -> Attribute:
        verb, (noun, _) = self._verb(), self._noun()
        time = self.rng.choice(self.words["time"])
        statements = [f"{{s}}{time}会{verb}{noun}。", f"{time}，{{s}}会{verb}{noun}。"]
        questions = [
            f"{{s}}什么时候会{verb}{noun}？", f"{{s}}会{verb}什么？", f"{{s}}何时{verb}{noun}？",
            f"{{s}}{time}会{verb}什么？",
        ]  # fmt: skip
        return Attribute(f"t:{verb}", "count", statements, questions)


GRAMMARS: Mapping[str, type[Grammar]] = {
    "en": EnglishGrammar,
    "zh": ChineseGrammar,
}
