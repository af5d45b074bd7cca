"""The mention drill: the words asked for stand together in exactly one row, or in none."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from fourbee.evaluation.scoring import is_right
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.mentions import mention_sample
from fourbee.training.generators.passages import SILENT
from fourbee.training.generators.sample import Sample

from .conftest import last_answer

SENTENCE_END = r"(?<=\.)(?<!Dr\.)(?<!Mr\.)(?<!Mrs\.)\s+"
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


def test_the_found_row_alone_holds_what_is_asked(drawn):
    for sample in drawn:
        match = re.search(r"(?:Which sentence mentions|Where do) (.+?) and (.+?)(?:\?| stand)",
                          last_answer(sample).splitlines()[0])  # fmt: skip
        if match is None:
            continue
        x, y = match.groups()
        text, question = sample.messages[0]["content"], match[0]
        rows = [one for one in re.split(SENTENCE_END, text.replace(question, "")) if one.strip()]
        both = [row for row in rows if x in row and y in row]
        verdict = read(sample)[2][-1]
        assert len(both) == (verdict == "yes"), (rows, x, y)
