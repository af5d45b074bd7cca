"""The mention drill: the words asked for stand together in exactly one row, or in none."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from fourbee.evaluation.scoring import is_right
from fourbee.training.generators import mentions
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.mentions import mark_sample, mention_sample
from fourbee.training.generators.passages import SILENT
from fourbee.training.generators.sample import Sample

from .conftest import last_answer

ROW = re.compile(r"- [\"“](.*)[\"”](?: (yes|no)|(是|否))")


@pytest.fixture(scope="module")
def drawn(lexicon) -> list[Sample]:
    return [
        mention_sample(random.Random(index), lexicon, language)
        for language, index in product(LANGUAGES, range(300))
    ]


def read(sample: Sample) -> tuple[str, list[str], list[str]]:
    """The question, the rows and their verdicts."""
    asked, *rows, _ = last_answer(sample).splitlines()
    matches = [ROW.fullmatch(row) for row in rows]
    assert all(matches)
    verdicts = [match[2] or match[3] for match in matches if match]
    return asked, [match[1] for match in matches if match], verdicts


def test_every_row_stands_in_the_prompt_and_the_expectation_is_the_answer(drawn):
    for sample in drawn:
        _, rows, _ = read(sample)
        assert all(row in sample.messages[0]["content"] for row in rows)
        assert is_right(last_answer(sample), sample.expect)


def test_only_the_last_verdict_may_be_yes_and_then_it_is_quoted(drawn):
    found = 0
    for sample in drawn:
        _, rows, verdicts = read(sample)
        assert set(verdicts[:-1]) <= {"no", "否"}
        if verdicts[-1] in ("yes", "是"):
            found += 1
            assert rows[-1] in last_answer(sample).splitlines()[-1]
        else:
            assert last_answer(sample).endswith(SILENT[sample.language])
    assert 0.7 < found / len(drawn) < 0.9


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The words that the last drill drew; the first two are those it may ask for."""
    drawn: list[str] = []
    draw_words = mentions._words

    def noting(*arguments) -> list[str]:
        drawn[:] = draw_words(*arguments)
        return list(drawn)

    monkeypatch.setattr(mentions, "_words", noting)
    return drawn


def test_the_found_row_alone_holds_what_is_asked(lexicon, asked):
    for language, index in product(LANGUAGES, range(300)):
        sample = mention_sample(random.Random(index), lexicon, language)
        question, rows, verdicts = read(sample)
        wanted = [word for word in asked[:2] if word in question]
        assert wanted
        holding = [row for row in rows if all(word in row for word in wanted)]
        # Rows end with the found one, so nothing before it may hold what is asked.
        assert holding == (rows[-1:] if verdicts[-1] in ("yes", "是") else [])


def test_marks_stand_at_the_words_asked_for_and_nowhere_else(lexicon, asked):
    stars = 0
    for language, index in product(LANGUAGES, range(300)):
        sample = mark_sample(random.Random(index), lexicon, language)
        plain = mention_sample(random.Random(index), lexicon, language)
        cue = "（标出）" if language == "zh" else " (mark the words)"
        assert last_answer(sample).replace("*", "").replace(cue, "") == last_answer(plain)
        assert cue in sample.messages[0]["content"]
        marked = re.findall(r"\*", last_answer(sample))
        stars += len(marked)
        for end in re.finditer(r"\*", last_answer(sample)):
            assert last_answer(sample)[: end.start()].endswith(tuple(asked[:2]))
    assert stars > 600
