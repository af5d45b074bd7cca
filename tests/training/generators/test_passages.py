"""Passages: what is asked is stated exactly once, or not at all, and is quoted word for word."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from fourbee.evaluation.scoring import is_right
from fourbee.training.generators import passages
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.names import Names
from fourbee.training.generators.passages import QUOTE, SILENT, VERDICT, passage_sample
from fourbee.training.generators.sample import Sample

from .conftest import last_answer

HALF_WIDTH = str.maketrans("？！，。：；（）", "?!,.:;()")
SAMPLES = 400  # of each language


@dataclass(frozen=True)
class Drawn:
    """A sample and what it was made from."""

    language: str
    sample: Sample
    passage: str
    sentences: tuple[str, ...]
    attribute: Any
    subject: str
    question: str  # before noise

    @property
    def sentences_that_answer(self) -> list[str]:
        """Those that state the attribute of the subject, by reading and not by book-keeping."""
        shapes = [
            re.escape(one).replace(r"\{s\}", re.escape(self.subject)).replace(r"\{v\}", ".+")
            for one in self.attribute.statements
        ]
        return [s for s in self.sentences if any(re.fullmatch(shape, s) for shape in shapes)]


def record(patch: pytest.MonkeyPatch, name: str, seen: dict[str, Any]) -> None:
    """Has `passages.name` note its arguments and result."""
    function: Callable[..., Any] = getattr(passages, name)

    def noting(*arguments: Any) -> Any:
        result = function(*arguments)
        seen[name] = arguments, result
        return result

    patch.setattr(passages, name, noting)


def draw(lexicon, present: bool, unseen: bool = False, count: int = SAMPLES) -> Iterator[Drawn]:
    """Samples whose attribute's name stands for one relation (see test_lexicon.py)."""
    ids = Counter(relation.id for relation in lexicon.relations)
    chosen = "_known" if present else "_missing"
    with pytest.MonkeyPatch.context() as patch:
        seen: dict[str, Any] = {}
        for name in ("_statements", chosen, "framed", "with_passage"):
            record(patch, name, seen)
        for language, index in product(LANGUAGES, range(count)):
            sample = passage_sample(random.Random(index), lexicon, language, present, unseen)
            attribute, subject = seen[chosen][1]
            if ids[attribute.id] < 2:
                passage, question = seen["with_passage"][0][2], seen["framed"][0][2]
                sentences = tuple(seen["_statements"][1].values())
                yield Drawn(language, sample, passage, sentences, attribute, subject, question)


@pytest.fixture(scope="module")
def answered(lexicon) -> list[Drawn]:
    return list(draw(lexicon, present=True))


@pytest.fixture(scope="module")
def silent(lexicon) -> list[Drawn]:
    return list(draw(lexicon, present=False))


def test_exactly_one_sentence_states_what_is_asked_and_the_answer_quotes_it(answered):
    assert len(answered) > 1.9 * SAMPLES
    for one in answered:
        [sentence] = one.sentences_that_answer
        assert one.passage.count(sentence) == 1
        *read, last = last_answer(one.sample).splitlines()
        assert last == QUOTE[one.language].replace("{sentence}", sentence)
        assert one.sample.expect == {"kind": "last_line", "value": [last]}
        # Sentences in the passage's order, each with its verdict, up to the one that is quoted.
        assert read[-1] == VERDICT[one.language, True].replace("{sentence}", sentence)
        in_order = sorted(one.sentences, key=one.passage.index)[: len(read)]
        refused = [VERDICT[one.language, False].replace("{sentence}", s) for s in in_order[:-1]]
        assert read[:-1] == refused
        assert one.sample.skill == "passage"


def test_no_sentence_states_what_an_absent_sample_asks(silent):
    assert len(silent) > 1.9 * SAMPLES
    for one in silent:
        assert one.sentences_that_answer == []
        *read, last = last_answer(one.sample).splitlines()
        assert last == SILENT[one.language]
        assert len(read) == len(one.sentences)
        assert one.sample.expect == {"kind": "last_line", "value": [last]}
        assert one.sample.skill == "passage_absent"


def test_passage_and_question_reach_the_prompt(answered, silent):
    for one in answered + silent:
        [question, _] = one.sample.messages
        assert one.passage in question["content"]
        assert one.question in {q.replace("{s}", one.subject) for q in one.attribute.questions}
        assert not re.search(r"\{[svn]\}|\{passage\}|\{question\}", question["content"])
        # Noise may write other marks and a small first letter, never another subject.
        rest = question["content"].replace(one.passage, "").translate(HALF_WIDTH).lower()
        assert one.subject.translate(HALF_WIDTH).lower() in rest


def test_a_passage_is_one_to_six_sentences_in_any_order(answered):
    counts = {len(one.sentences) for one in answered}
    assert counts == {1, 2, 3, 4, 5, 6}
    for one in answered:
        joiners = ("\n", " " if one.language == "en" else "")
        assert any(sum(map(len, one.sentences)) + len(j) * (len(one.sentences) - 1)
                   == len(one.passage) for j in joiners)  # fmt: skip
        assert all(sentence in one.passage for sentence in one.sentences)
    where = Counter(
        one.passage.startswith(one.sentences_that_answer[0])
        for one in answered
        if len(one.sentences) == 2
    )
    assert 0.35 < where[True] / where.total() < 0.65


def test_an_absent_question_is_mostly_about_somebody_in_the_passage(silent):
    there = [one for one in silent if one.subject in one.passage]
    assert 0.6 < len(there) / len(silent) < 0.95
    # ... and at times about an attribute that is stated of somebody else.
    borrowed = 0
    for one in silent:
        shapes = [re.escape(s).replace(r"\{s\}", ".+").replace(r"\{v\}", ".+")
                  for s in one.attribute.statements]  # fmt: skip
        borrowed += any(re.fullmatch(shape, s) for shape in shapes for s in one.sentences)
    assert borrowed / len(silent) > 0.1


def test_quotes_and_silence_are_told_apart_by_the_scoring(answered, silent):
    for one in answered[:50]:
        assert is_right(last_answer(one.sample), one.sample.expect)
        assert not is_right(SILENT[one.language], one.sample.expect)
    for one in silent[:50]:
        assert is_right(last_answer(one.sample), one.sample.expect)
        assert not is_right(one.passage, one.sample.expect)


def names_used(lexicon, present: bool, monkeypatch) -> set[bool]:
    """The pools (unseen or not) that a passage of the unseen kind draws from."""
    pools: set[bool] = set()
    draw_from = Names._from_pool

    def noting(self: Names, make: Callable[[], str]) -> str:
        pools.add(self.unseen)
        return draw_from(self, make)

    monkeypatch.setattr(Names, "_from_pool", noting)
    list(draw(lexicon, present, unseen=True, count=60))
    return pools


def test_an_answered_unseen_passage_holds_unseen_names_only(lexicon, monkeypatch):
    assert names_used(lexicon, True, monkeypatch) == {True}


def test_a_silent_unseen_passage_holds_unseen_names_only(lexicon, monkeypatch):
    assert names_used(lexicon, False, monkeypatch) == {True}
