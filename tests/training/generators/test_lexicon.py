"""The rules that the lexicon is written by."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from fourbee.training.generators.blind import _GREETING
from fourbee.training.generators.lexicon import LANGUAGES, han_characters
from fourbee.training.generators.names import Names

SLOT = re.compile(r"\{\w*\}")


def slots(text: str) -> Counter[str]:
    return Counter(SLOT.findall(text))


def unclean(texts: list[str]) -> list[str]:
    """Texts that are empty, padded or given twice."""
    counts = Counter(texts)
    return [text for text in texts if not text.strip() or counts[text] > 1]


def test_there_are_many_relations(lexicon):
    assert len(lexicon.relations) >= 150


def test_every_relation_has_an_id_of_its_own(lexicon):
    counts = Counter(relation.id for relation in lexicon.relations)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_statement_names_subject_and_value_once_and_a_question_the_subject(lexicon, language):
    for relation in lexicon.relations:
        statements, questions = relation.statements[language], relation.questions[language]
        assert len(statements) >= 6, relation.id
        assert len(questions) >= 6, relation.id
        assert unclean(statements) == [] == unclean(questions), relation.id
        for statement in statements:
            assert slots(statement) == {"{s}": 1, "{v}": 1}, (relation.id, statement)
        for question in questions:
            assert slots(question) == {"{s}": 1}, (relation.id, question)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_generic_attribute_is_stated_and_asked_for_by_its_noun(lexicon, language):
    for statement in lexicon.attributes[f"statements_{language}"]:
        assert slots(statement) == {"{n}": 1, "{s}": 1, "{v}": 1}
    for question in lexicon.attributes[f"questions_{language}"]:
        assert slots(question) == {"{n}": 1, "{s}": 1}
    assert len(lexicon.attributes[language]) >= 100
    assert unclean(lexicon.attributes[language]) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_value_and_a_subject_of_every_kind_can_be_made_up(lexicon, language):
    names = Names(random.Random(0), language)
    for relation in lexicon.relations:
        assert names.value(relation.value).strip()
        assert names.subject(relation.subject).strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_says_what_a_right_answer_must_and_is_asked_for(lexicon, language):
    assert lexicon.facts.keys() == lexicon.about_questions.keys()
    for name, fact in lexicon.facts.items():
        must = fact.get(f"must_{language}", fact.get("must"))
        assert must, name
        assert [text for text in must if text not in fact[language]] == [], name
        questions = lexicon.about_questions[name][language]
        assert len(questions) >= 10, name
        assert unclean(questions) == [], name
        assert [q for q in questions if SLOT.search(q)] == [], name


@pytest.mark.parametrize("language", LANGUAGES)
def test_arithmetic_questions_name_both_operands_once(lexicon, language):
    assert lexicon.arithmetic_questions.keys() == {"+", "-", "*"}
    asked = [*lexicon.arithmetic_questions.values(), *lexicon.calculator_questions.values()]
    for wording in asked:
        assert len(wording[language]) >= 10
        for question in wording[language]:
            assert slots(question) == {"{a}": 1, "{b}": 1}, question
    kinds = {(kind, op) for kind in ("questions", "word_problems") for op in "+-*/"}
    assert lexicon.calculator_questions.keys() == kinds


@pytest.mark.parametrize("language", LANGUAGES)
def test_wrappers_hold_passage_and_question_once_and_in_the_order_they_say(lexicon, language):
    for kind in ("passage_then_question", "question_then_passage"):
        order = [f"{{{name}}}" for name in kind.split("_then_")]
        for wrapper in lexicon.framing[kind][language]:
            assert SLOT.findall(wrapper) == order, wrapper
    for kind in ("system", "polite_prefix", "polite_suffix"):
        assert unclean(lexicon.framing[kind][language]) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_requests_beyond_the_model_and_raw_prompts_have_at_most_a_topic_to_fill(lexicon, language):
    for texts in (lexicon.outside[language], lexicon.completions[language]):
        assert len(texts) >= 100
        assert [text for text in texts if not text.strip()] == []
        assert {slot for text in texts for slot in slots(text)} == {"{x}"}
    assert unclean(lexicon.topics[language]) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_greetings_have_messages_and_the_replies_that_blind_tests_expect(lexicon, language):
    for intent, wording in lexicon.greetings.items():
        assert len(wording[language]["messages"]) >= 10, intent
        assert wording[language]["replies"], intent
    for intent, expected in _GREETING.items():
        assert expected[language] in lexicon.greetings[intent][language]["replies"][0]


def test_tools_have_names_that_json_and_python_take(lexicon):
    names = lexicon.calculator["names"]["en"]
    arguments = lexicon.calculator["argument_names"]["en"]
    others = lexicon.calculator["other_tools"]["tools"]
    assert [n for n in (*names, *arguments) if not re.fullmatch(r"[A-Za-z_]\w*", n)] == []
    assert unclean([*names, *(tool["name"] for tool in others)]) == []
    assert all(tool["description"].strip() and tool["argument"] for tool in others)
    for language in LANGUAGES:
        assert unclean(lexicon.calculator["descriptions"][language]) == []
        assert all(slots(r) == {"{result}": 1} for r in lexicon.calculator["replies"][language])


def test_the_tokenizer_is_told_every_han_character_once():
    characters = han_characters()
    assert characters == sorted(set(characters))
    assert {"的", "文", "？", "，"} <= set(characters)
    assert all(len(character) == 1 for character in characters)
