"""Made-up names: two pools that share no word, and values of every kind."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache

import pytest

from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.names import Names

MAKERS = ("word", "person", "place", "organisation", "thing_name", "thing", "noun")
DRAWS = 1000


@cache
def drawn(language, unseen, makers: Sequence[str] = MAKERS) -> set[str]:
    names = Names(random.Random(1), language, unseen)
    return {getattr(names, maker)() for maker in makers for _ in range(DRAWS)}


def latin_words(names: set[str]) -> set[str]:
    """The made-up Latin words; titles and the ends of companies' names are no such words."""
    words = {word.lower() for name in names for word in re.findall(r"[A-Za-z]+", name)}
    known = "dr mr mrs ltd group club institute museum bank press foods school hospital hotel works"
    return words - set(f"{known} airlines labs".split())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_latin_word_of_the_unseen_pool_is_in_the_training_pool(language):
    training, unseen = (latin_words(drawn(language, pool)) for pool in (False, True))
    assert len(unseen) > 2000
    assert unseen & training == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_unseen_name_is_a_training_name(language):
    makers = tuple(maker for maker in MAKERS if (language, maker) != ("zh", "place"))
    assert drawn(language, True, makers) & drawn(language, False, makers) == set()


def test_no_unseen_chinese_place_or_noun_is_a_training_place():
    assert drawn("zh", True, ("place", "noun")) & drawn("zh", False, ("place", "noun")) == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_seed_makes_the_same_names(language):
    runs = [Names(random.Random(5), language) for _ in range(2)]
    first, second = ([getattr(names, m)() for m in MAKERS * 20] for names in runs)
    assert first == second
    assert len(set(first)) > 100


def test_a_chinese_text_has_chinese_and_latin_names_an_english_one_latin_names_only():
    chinese, english = drawn("zh", False), drawn("en", False)
    assert all(name.isascii() for name in english)
    share = sum(name.isascii() for name in chinese) / len(chinese)
    assert 0.1 < share < 0.6


@pytest.mark.parametrize("language", LANGUAGES)
def test_values_are_of_their_kind(language):
    names = Names(random.Random(2), language)
    shapes = {
        "number": r"\d{1,2}\.[1-9]|\d{1,6}|\d{1,3},\d{3}",
        "year": r"1[2-9]\d\d|20[0-6]\d",
        "time": r"(1?\d|2[0-3]):[0-5]\d",
        "money": r"\d{1,4}",
        "date": r"(1?\d)月([12]?\d)日"
        if language == "zh"
        else r"\d{1,2} [A-Z]\w+|[A-Z]\w+ \d{1,2}",
        "color": r"\w+色" if language == "zh" else r"[a-z]+",
    }
    for kind, shape in shapes.items():
        for _ in range(300):
            value = names.value(kind)
            assert re.fullmatch(shape, value), (kind, value)


def test_a_date_is_a_day_of_the_calendar():
    names = Names(random.Random(3), "en")
    for _ in range(300):
        day, month = sorted(names.date().split(), key=str.isalpha)
        assert datetime.strptime(f"{day} {month} 2001", "%d %B %Y")
