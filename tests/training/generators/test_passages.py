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
from fourbee.training.generators.passages import (
    ASKED,
    QUOTE,
    SILENT,
    VERDICT,
    Passage,
    Question,
    passage_sample,
    passage_talk,
)
from fourbee.training.generators.sample import Sample

from .conftest import last_answer

HALF_WIDTH = str.maketrans("？！，。：；（）", "?!,.:;()")
SAMPLES = 400  # of each language


@dataclass(frozen=True)
class Drawn:
    """A sample and what it was made from."""

    language: str
    sample: Sample
    passage: Passage
    question: Question

    @property
    def sentences_that_answer(self) -> list[str]:
        """Those that state the attribute of the subject, by reading and not by book-keeping."""
        shapes = [
            re.escape(one).replace(r"\{s\}", re.escape(self.question.subject))
            for one in self.question.attribute.statements
        ]
        shapes = [shape.replace(r"\{v\}", ".+") for shape in shapes]
        return [
            sentence
            for sentence in self.passage.sentences
            if any(re.fullmatch(shape, sentence, re.IGNORECASE) for shape in shapes)
        ]

    @property
    def about_a_detail_left_out(self) -> bool:
        silent = self.question.attribute.silent_questions
        return self.question.text in {q.replace("{s}", self.question.subject) for q in silent}


def record(patch: pytest.MonkeyPatch, name: str, seen: dict[str, Any]) -> None:
    """Has `passages.name` note its result."""
    function: Callable[..., Any] = getattr(passages, name)

    def noting(*arguments: Any) -> Any:
        seen[name] = function(*arguments)
        return seen[name]

    patch.setattr(passages, name, noting)


def draw(lexicon, present: bool, unseen: bool = False, count: int = SAMPLES) -> Iterator[Drawn]:
    """Samples whose attribute's name stands for one relation (see test_lexicon.py)."""
    ids = Counter(relation.id for relation in lexicon.relations)
    with pytest.MonkeyPatch.context() as patch:
        seen: dict[str, Any] = {}
        for name in ("draw_passage", "draw_question"):
            record(patch, name, seen)
        for language, index in product(LANGUAGES, range(count)):
            sample = passage_sample(random.Random(index), lexicon, language, present, unseen)
            if ids[seen["draw_question"].attribute.id] < 2:
                yield Drawn(language, sample, seen["draw_passage"], seen["draw_question"])


@pytest.fixture(scope="module")
def answered(lexicon) -> list[Drawn]:
    return list(draw(lexicon, present=True))


@pytest.fixture(scope="module")
def silent(lexicon) -> list[Drawn]:
    return list(draw(lexicon, present=False))


def verdicts(language: str, sentences: list[str], right: bool) -> list[str]:
    return [VERDICT[language, right].replace("{sentence}", one) for one in sentences]


def test_exactly_one_sentence_states_what_is_asked_and_the_answer_quotes_it(answered):
    assert len(answered) > 1.9 * SAMPLES
    for one in answered:
        [sentence] = one.sentences_that_answer
        assert sentence == one.question.answer
        assert one.passage.text.count(sentence) == 1
        _asked, *read, last = last_answer(one.sample).splitlines()
        assert last == QUOTE[one.language].replace("{sentence}", sentence)
        assert one.sample.expect == {"kind": "last_line", "value": [last]}
        # Sentences in the passage's order, each with its verdict, up to the one that is quoted.
        assert read[-1:] == verdicts(one.language, [sentence], True)
        assert read[:-1] == verdicts(one.language, one.passage.sentences[: len(read) - 1], False)
        assert one.sample.skill == "passage"


def test_no_sentence_states_what_an_absent_sample_asks(silent):
    assert len(silent) > 1.9 * SAMPLES
    for one in silent:
        assert one.sentences_that_answer == [] or one.about_a_detail_left_out
        assert one.question.answer is None
        _, *read, last = last_answer(one.sample).splitlines()
        assert last == SILENT[one.language]
        assert read == verdicts(one.language, one.passage.sentences, False)
        assert one.sample.expect == {"kind": "last_line", "value": [last]}
        assert one.sample.skill == "passage_absent"


def test_the_answer_first_repeats_the_question_as_it_was_typed(answered, silent):
    for one in answered + silent:
        head, _, asked = (
            last_answer(one.sample)
            .splitlines()[0]
            .partition(ASKED[one.language].partition("{question}")[0])
        )
        assert head == ""
        assert asked in one.sample.messages[0]["content"]
        # Noise is in the marks and in the first letter.
        typed, meant = (
            re.sub(r"[\s.?!]", "", text.translate(HALF_WIDTH)).lower()
            for text in (asked, one.question.text)
        )
        assert typed == meant


def test_passage_and_question_reach_the_prompt(answered, silent):
    for one in answered + silent:
        [question, _] = one.sample.messages
        assert one.passage.text in question["content"]
        assert not re.search(r"\{[svn]\}|\{passage\}|\{question\}", question["content"])


def test_a_question_that_names_nobody_is_about_what_is_stated_once(answered, silent):
    for one in answered + silent:
        if one.question.subject not in one.question.text:
            stated = sum(
                other.attribute.id == one.question.attribute.id for other in one.passage.statements
            )
            assert stated == (one.question.answer is not None)


def test_a_passage_is_one_to_six_sentences_in_any_order(answered):
    assert {len(one.passage.sentences) for one in answered} == {1, 2, 3, 4, 5, 6}
    for one in answered:
        joiners = ("\n", " " if one.language == "en" else "")
        assert one.passage.text in {joiner.join(one.passage.sentences) for joiner in joiners}
    where = Counter(
        one.passage.sentences[0] == one.question.answer
        for one in answered
        if len(one.passage.sentences) == 2
    )
    assert 0.35 < where[True] / where.total() < 0.65


def test_an_absent_question_is_mostly_about_somebody_in_the_passage(silent):
    there = [one for one in silent if one.question.subject in one.passage.kinds]
    assert 0.6 < len(there) / len(silent) < 0.95
    # ... at times about an attribute that is stated of somebody else, or a detail left out.
    borrowed = [one for one in silent if one.passage.states(one.question.attribute)]
    assert len(borrowed) / len(silent) > 0.1
    assert any(one.about_a_detail_left_out for one in silent)


def test_quotes_and_silence_are_told_apart_by_the_scoring(answered, silent):
    for one in answered[:50]:
        assert is_right(last_answer(one.sample), one.sample.expect)
        assert not is_right(SILENT[one.language], one.sample.expect)
    for one in silent[:50]:
        assert is_right(last_answer(one.sample), one.sample.expect)
        assert not is_right(one.passage.text, one.sample.expect)


def test_a_talk_asks_several_questions_of_the_passage_in_its_first_turn(lexicon):
    for language, index in product(LANGUAGES, range(100)):
        sample = passage_talk(random.Random(index), lexicon, language)
        asked, answers = sample.messages[::2], sample.messages[1::2]
        assert 2 <= len(asked) == len(answers) <= 4
        assert is_right(answers[-1]["content"], sample.expect)
        for answer in answers:
            _, *read, _ = answer["content"].splitlines()
            for line in read:
                sentence = re.fullmatch(r"- [\"“](.*)[\"”](?: yes| no|是|否)", line)
                assert sentence and sentence[1] in asked[0]["content"]


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
