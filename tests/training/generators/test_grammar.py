"""The sentence grammar: whole clauses, questions in its own words, word lists without slips."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from fourbee.training.generators.attributes import draw_attribute
from fourbee.training.generators.grammar import GRAMMARS, Attribute
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.names import Names

KINDS = ("person", "organisation", "thing", "composed")


@pytest.fixture(scope="module")
def clauses(lexicon) -> list[tuple[str, Attribute]]:
    drawn = []
    for language, index in product(LANGUAGES, range(600)):
        rng = random.Random(index)
        names = Names(rng, language)
        grammar = GRAMMARS[language](rng, lexicon.grammar[language], names, rng.choice(KINDS))
        drawn.append((language, grammar.clause()))
    return drawn


def test_statements_and_questions_name_the_subject_and_no_other_blank(clauses):
    for _, clause in clauses:
        assert clause.statements and clause.questions
        for text in (*clause.statements, *clause.questions, *clause.silent_questions):
            assert text.count("{s}") == 1
        for text in clause.subject_questions:
            assert "{s}" not in text
        for text in (*clause.questions, *clause.subject_questions, *clause.silent_questions):
            assert set(re.findall(r"\{(.*?)\}", text)) <= {"s"}
        for text in clause.statements:
            assert set(re.findall(r"\{(.*?)\}", text)) <= {"s", "v"}


def test_each_ends_with_its_mark_and_has_no_doubled_or_missing_space(clauses):
    for language, clause in clauses:
        asked = (*clause.questions, *clause.subject_questions, *clause.silent_questions)
        ends = ("?", ".") if language == "en" else ("？", "。")
        assert all(text.endswith(ends[1]) for text in clause.statements)
        assert all(text.endswith(ends) for text in asked)
        for text in (*clause.statements, *asked):
            assert "  " not in text and " ." not in text and text == text.strip()


def test_a_question_about_a_left_out_detail_is_no_question_that_is_answered(clauses):
    assert any(clause.silent_questions for _, clause in clauses)
    for _, clause in clauses:
        assert not set(clause.silent_questions) & {*clause.questions, *clause.subject_questions}


def test_clauses_hardly_repeat_themselves(clauses):
    for language in LANGUAGES:
        mine = [clause.id for one, clause in clauses if one == language]
        assert len(set(mine)) > 0.6 * len(mine)


def test_the_word_lists_are_long_and_without_repetition(lexicon):
    for language in LANGUAGES:
        words = lexicon.grammar[language]
        assert len(words["verbs"]) >= 260 and len(words["nouns"]) >= 420
        for part, entries in words.items():
            firsts = [entry if isinstance(entry, str) else entry[0] for entry in entries]
            assert len(firsts) == len(set(firsts)), part
    assert all(len(verb) == 4 for verb in lexicon.grammar["en"]["verbs"])
    assert all(len(noun) == 2 for noun in lexicon.grammar["en"]["nouns"])
    assert all(third.endswith("s") for _, third, _, _ in lexicon.grammar["en"]["verbs"])


def test_attributes_come_from_relations_generic_nouns_and_the_grammar(lexicon):
    relations = {relation.id for relation in lexicon.relations}
    drawn: list[Attribute] = []
    for index in range(600):
        rng = random.Random(index)
        drawn.append(draw_attribute(rng, lexicon, "person", Names(rng, "en")))
    shares = {
        "relation": sum(one.id in relations for one in drawn) / len(drawn),
        "generic": sum(one.id.startswith("n:") for one in drawn) / len(drawn),
    }
    assert 0.3 < shares["relation"] < 0.55 and 0.15 < shares["generic"] < 0.4
    # A subject of which no relation is known still gets an attribute.
    rng = random.Random(0)
    assert draw_attribute(rng, lexicon, "composed", Names(rng, "zh")).statements
