"""Copy drills and the noise around questions: what is to be copied stands in the prompt."""

from __future__ import annotations

import random

import pytest

from fourbee.training.generators.copying import copy_sample, repeat_sample
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.wording import framed, noisy, with_passage

from .conftest import last_answer

languages = pytest.mark.parametrize("language", LANGUAGES)


@languages
def test_what_is_to_be_copied_is_in_the_prompt(lexicon, language):
    lines = 0
    for index in range(400):
        sample = copy_sample(random.Random(index), lexicon, language)
        asked, answer = sample.messages[0]["content"], last_answer(sample)
        assert answer.strip()
        assert answer in asked
        assert sample.expect == {"kind": "one_of", "value": [answer]}
        lines += asked.split("\n").count(answer)
    assert lines > 100


@languages
def test_the_key_of_a_line_is_in_no_other_line(lexicon, language):
    mark = '"' if language == "en" else "”"
    opening = '"' if language == "en" else "“"
    picked = 0
    for index in range(400):
        sample = copy_sample(random.Random(index), lexicon, language)
        parts = sample.messages[0]["content"].split("\n\n")
        if len(parts) != 2 or opening not in sample.messages[0]["content"]:
            continue
        ask, text = parts if opening in parts[0] else reversed(parts)
        key = ask.split(opening)[1].split(mark)[0]
        answer, among = last_answer(sample), text.split("\n")
        picked += 1
        assert key in answer
        assert key == answer or sum(key in line for line in among) == 1
    assert picked > 100


@languages
def test_a_repetition_is_the_same_span_again_and_again(lexicon, language):
    for index in range(200):
        sample = repeat_sample(random.Random(index), lexicon, language)
        times = sample.completion.count(sample.prompt)
        joiner = sample.completion.split(sample.prompt)[0]
        assert 2 <= times <= 4
        assert joiner in ("\n", " ", " | ", "; ")
        assert sample.completion == (joiner + sample.prompt) * times
        assert sample.expect is None


@languages
def test_noise_keeps_the_words(language):
    text = "When was Qwerty born?" if language == "en" else "夸提是什么时候出生的？"
    kept = "hen was Qwerty born" if language == "en" else "夸提是什么时候出生的"
    forms = {noisy(random.Random(index), text, language) for index in range(500)}
    assert len(forms) >= (7 if language == "en" else 4)
    assert all(kept in form for form in forms)


def test_noise_leaves_a_text_of_marks_alone():
    assert all(noisy(random.Random(index), "?", "en").strip() for index in range(200))


@languages
def test_politeness_goes_around_the_question(lexicon, language):
    text = "12+3" if language == "en" else "北京"
    forms = {framed(random.Random(index), lexicon, text, language) for index in range(500)}
    assert all(text in form for form in forms)
    assert any(form.startswith(text) and form.strip() != text for form in forms)
    assert any(form.endswith(text) and form != text for form in forms)


@languages
def test_a_passage_is_never_touched(lexicon, language):
    passage, question = "ONE. Two?\n THREE ...  ", "What is {s}?"
    forms = {
        with_passage(random.Random(index), lexicon, passage, question, language)
        for index in range(300)
    }
    assert len(forms) > 30
    assert all(passage in form and question in form for form in forms)
    before = sum(form.index(passage) < form.index(question) for form in forms)
    assert 0.4 < before / len(forms) < 0.9
