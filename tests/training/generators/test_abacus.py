"""Sums on rods: every answer is right, every near miss is wrong, no test is trained on."""

from __future__ import annotations

import json
import random

import pytest

from fourbee.foundation.errors import UsageError
from fourbee.training.generators.abacus import (
    FORMS,
    AbacusRecipe,
    Sum,
    draw_sum,
    near_miss,
    on_rods,
    write_abacus,
)

COUNTS = {"conversations": 900, "pairs": 500, "tasks": 500, "held_out": 150}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The records of every file, by its name."""
    folder = tmp_path_factory.mktemp("abacus")
    paths = write_abacus(AbacusRecipe(folder, **COUNTS))
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in paths
    }


def asked(record) -> str:
    turns = record["messages"] if "messages" in record else record["prompt"]
    return turns[0]["content"]


def worked_out(question: str) -> str:
    """The answer by Python's own arithmetic, from the rods and to them."""
    sign = "+" if "+" in question else "-"
    a, b = (int(rods[::-1]) for rods in question.split(sign))
    result = a + b if sign == "+" else a - b
    return f"{result:05d}"[::-1]


@pytest.mark.parametrize(
    ("one", "prompt", "answer", "carries"),
    [
        (Sum(37, 58, "+", 3), "730+850", "5900", 1),
        (Sum(999, 1, "+", 3), "999+100", "0001", 3),
        (Sum(1000, 1, "-", 4), "0001-1000", "99900", 3),
        (Sum(52, 17, "-", 2), "25-71", "530", 1),
        (Sum(0, 0, "+", 1), "0+0", "00", 0),
    ],
)
def test_a_sum_is_written_from_the_ones_up(one, prompt, answer, carries):
    assert (one.prompt, one.answer, one.carries) == (prompt, answer, carries)


def test_files_have_the_forms_and_numbers_of_the_recipe(written):
    for form in FORMS:
        assert len(written[form]) == COUNTS[form]
        assert len(written[f"{form}-held-out"]) == COUNTS["held_out"]


def test_every_answer_is_right(written):
    for name, records in written.items():
        for record in records:
            right = worked_out(asked(record))
            if name.startswith("conversations"):
                assert record["messages"][1] == {"role": "assistant", "content": right}
                assert record["expect"] == {"kind": "one_of", "value": [right]}
            else:
                assert record["chosen" if name.startswith("pairs") else "answer"] == right


def test_every_rejected_answer_is_wrong_and_near(written):
    changes = set()
    for record in written["pairs"] + written["pairs-held-out"]:
        chosen, rejected = record["chosen"], record["rejected"]
        assert len(chosen) == len(rejected)
        differing = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a != b]
        if len(differing) == 2:
            assert differing[0] == differing[1][::-1]
            changes.add("two exchanged")
        else:
            ((right, wrong),) = differing
            carry = (int(right) - int(wrong)) % 10 in (1, 9)
            changes.add("a carry" if carry else "a digit")
    assert changes == {"two exchanged", "a carry", "a digit"}


def test_a_near_miss_of_equal_digits_is_found():
    rng = random.Random(0)
    assert all(near_miss(Sum(0, 0, "+", 1), rng) != "00" for _ in range(50))


def test_what_is_held_out_is_in_no_training_file(written):
    held_out = {asked(one) for name in written if "held-out" in name for one in written[name]}
    trained = {asked(one) for name in written if "held-out" not in name for one in written[name]}
    assert len(held_out) > 300
    assert not held_out & trained


def test_lengths_signs_and_difficulties_are_all_there(written):
    records = written["conversations"]
    signs = [one["skill"] for one in records]
    assert 0.4 < signs.count("add") / len(signs) < 0.6
    assert {one["difficulty"] for one in records} == set(range(1, 9))
    rng = random.Random(0)
    drawn = [draw_sum(rng, 4) for _ in range(2000)]
    assert all(one.a >= one.b for one in drawn if one.sign == "-")
    longest = [len(str(max(one.a, one.b))) for one in drawn]
    assert {longest.count(n) > 80 for n in (1, 2, 3, 4)} == {True}


def test_difficulty_is_the_digits_and_the_carries(written):
    for record in written["tasks"]:
        question = asked(record)
        sign = "+" if "+" in question else "-"
        a, b = (int(rods[::-1]) for rods in question.split(sign))
        places = [10**n for n in range(1, 5)]
        if sign == "+":
            carries = sum(a % p + b % p >= p for p in places)
        else:
            carries = sum(a % p < b % p for p in places)
        assert record["difficulty"] == len(str(max(a, b))) + carries


def test_the_same_recipe_is_the_same_bytes_and_another_seed_others(tmp_path):
    def texts(name: str, seed: int) -> list[bytes]:
        recipe = AbacusRecipe(tmp_path / name, seed, 3, 40, 20, 20, 10)
        return [path.read_bytes() for path in write_abacus(recipe)]

    first = texts("one", 1)
    assert texts("two", 1) == first
    assert not set(texts("three", 2)) & set(first)


def test_rods_are_as_many_as_the_recipe_says(tmp_path):
    paths = write_abacus(AbacusRecipe(tmp_path, 0, 2, 30, 5, 5, 5))
    for line in paths[0].read_text().splitlines():
        question = asked(json.loads(line))
        assert len(question) == 5
    assert on_rods(7, 3) == "700"


@pytest.mark.parametrize("digits", [0, 10])
def test_digits_beyond_an_abacus_are_one_line(digits):
    with pytest.raises(UsageError) as error:
        AbacusRecipe(digits=digits)
    assert str(error.value) == f"digits = {digits}: expected from 1 to 9"


def test_digits_of_one_rod_can_be_held_out(tmp_path):
    """Few prompts exist at all: some are held out, and drawing ends."""
    paths = write_abacus(AbacusRecipe(tmp_path, 0, 1, 20, 5, 5, 5))
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize("form", [*FORMS, "held_out"])
def test_less_than_no_samples_are_one_line(form):
    with pytest.raises(UsageError) as error:
        AbacusRecipe(**{form: -1})
    assert str(error.value) == f"{form} = -1: expected at least 0"
