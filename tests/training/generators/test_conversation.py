"""Greetings, facts, refusals, raw prompts and several turns, each with its one right answer."""

from __future__ import annotations

import random
import re

import pytest

from fourbee.training.generators.arithmetic import arithmetic_sample
from fourbee.training.generators.conversation import (
    BEYOND,
    about_sample,
    completion_sample,
    greeting_sample,
    multi_turn,
    refusal_sample,
    with_system,
)
from fourbee.training.generators.lexicon import LANGUAGES

from .conftest import last_answer

languages = pytest.mark.parametrize("language", LANGUAGES)


def draw(maker, lexicon, language, count=200):
    return [maker(random.Random(index), lexicon, language) for index in range(count)]


@languages
def test_a_greeting_is_answered_with_its_intents_first_reply(lexicon, language):
    replies = {wording[language]["replies"][0] for wording in lexicon.greetings.values()}
    samples = draw(greeting_sample, lexicon, language)
    assert {last_answer(sample) for sample in samples} == replies
    assert all(sample.expect["value"] == [last_answer(sample)] for sample in samples)


@languages
def test_every_fact_is_asked_for_and_its_answer_is_the_fact(lexicon, language):
    samples = draw(about_sample, lexicon, language, 400)
    facts = {fact[language] for fact in lexicon.facts.values()}
    assert {last_answer(sample) for sample in samples} == facts
    for sample in samples:
        assert all(text in last_answer(sample) for text in sample.expect["value"])


@languages
def test_what_is_beyond_the_model_gets_one_honest_sentence(lexicon, language):
    for sample in draw(refusal_sample, lexicon, language, 400):
        assert last_answer(sample) == BEYOND[language]
        assert not re.search(r"\{[sxab]\}", sample.messages[0]["content"])


@languages
def test_a_sum_that_is_refused_is_larger_than_any_that_is_worked_out(lexicon, language):
    sums = re.compile(r"(?<!\d)\d{5,}(?!\d)")
    found = [
        sums.findall(sample.messages[0]["content"])
        for sample in draw(refusal_sample, lexicon, language, 800)
    ]
    assert 0.06 < sum(len(numbers) == 2 for numbers in found) / len(found) < 0.2


@languages
def test_a_raw_prompt_ends_politely_at_once(lexicon, language):
    for sample in draw(completion_sample, lexicon, language):
        assert sample.completion == BEYOND[language]
        assert sample.prompt.strip()
        assert sample.messages == ()
        assert "{x}" not in sample.prompt


@languages
def test_several_samples_become_one_conversation_that_expects_the_last_answer(lexicon, language):
    for index in range(100):
        rng = random.Random(index)
        parts = [
            arithmetic_sample(rng, lexicon, language),
            arithmetic_sample(rng, lexicon, language),
            about_sample(rng, lexicon, language),
        ]
        joined = multi_turn(rng, lexicon, parts)
        turns = [message for part in parts for message in part.messages]
        assert [m for m in joined.messages if m in turns] == turns
        assert joined.messages[-1] == turns[-1]
        assert [m["role"] for m in joined.messages] == ["user", "assistant"] * (
            len(joined.messages) // 2
        )
        assert joined.expect == parts[-1].expect
        assert joined.skill == "multi_turn"


def test_thanks_in_between_are_answered(lexicon):
    thanks = lexicon.greetings["thanks"]["en"]
    found = 0
    for index in range(200):
        rng = random.Random(index)
        parts = [about_sample(rng, lexicon, "en") for _ in range(3)]
        extra = multi_turn(rng, lexicon, parts).messages[2:4]
        if extra[0] not in parts[1].messages:
            found += 1
            assert extra[0]["content"] in thanks["messages"]
            assert extra[1]["content"] == thanks["replies"][0]
    assert 20 < found < 70


def test_a_system_prompt_comes_first_and_changes_nothing_else(lexicon):
    sample = about_sample(random.Random(0), lexicon, "zh")
    framed = with_system(random.Random(1), lexicon, sample, "zh")
    assert framed.messages[0]["role"] == "system"
    assert framed.messages[0]["content"] in lexicon.framing["system"]["zh"]
    assert framed.messages[1:] == sample.messages
    assert framed.expect == sample.expect
