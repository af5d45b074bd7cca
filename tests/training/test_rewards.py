"""Verifiable rewards: known answers of each, their weighted sum, and recipes that are wrong."""

from __future__ import annotations

import pytest

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.settings import build
from fourbee.training.rewards import REWARDS, Rewards, RewardTerm, last_number
from fourbee.training.tasks import Task

OPTIONS = {"matches": {"pattern": r"<a>.*</a>"}, "short": {"longest": 4}}


def term(name: str, weight: float = 1.0) -> RewardTerm:
    return RewardTerm(name, weight, **OPTIONS.get(name, {}))


def score(name: str, text: str, answer: str = "") -> float:
    (value,) = Rewards([term(name)]).score([text], [Task((1,), {"answer": answer})]).totals
    return value


@pytest.mark.parametrize(
    ("name", "text", "answer", "value"),
    [
        ("exact", "42", "42", 1), ("exact", " 42\n", "42 ", 1), ("exact", "42.", "42", 0),
        ("exact", "", "42", 0), ("exact", "042", "42", 0),
        ("number", "It is 42.", "42", 1), ("number", "6 times 7 is 42", "#### 42", 1),
        ("number", "42 or 43", "42", 0), ("number", "$1,234.50", "1234.5", 1),
        ("number", "-3", "3", 0), ("number", "none", "3", 0), ("number", "3", "#### 4", 0),
        ("number", "1e999999", "3", 0), ("number", "7.0", "7", 1), ("number", "5-3=2", "2", 1),
        ("boxed", r"so \boxed{42}", "42", 1), ("boxed", r"\boxed{1} \boxed{ x+1 }", "x+1", 1),
        ("boxed", "42", "42", 0), ("boxed", r"\boxed{42", "42", 0),
        ("boxed", r"\boxed{1,000}", "1000", 1), ("boxed", r"\boxed{y}", "x", 0),
        ("boxed", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1),
        ("boxed", r"\boxed{2} then \boxed{\sqrt{3}}", "2", 0),
        ("boxed", r"\boxed{\boxed{7}}", "7", 1), ("boxed", r"\boxed{1} \boxed{2", "1", 0),
        ("contains", "the word is tree.", "tree", 1), ("contains", "the word", "tree", 0),
        ("matches", "<a>x\ny</a>", "", 1), ("matches", "<a>x</a> ", "", 0),
        ("short", "four", "", 1), ("short", "five5", "", 0),
        ("share", "5900", "5900", 1), ("share", "5910", "5900", 0.75), ("share", "", "5900", 0),
        ("share", "590", "5900", 0.75), ("share", "59000000", "5900", 0.5), ("share", "", "", 0),
    ],
)  # fmt: skip
def test_known_answers(name, text, answer, value):
    assert score(name, text, answer) == value


def test_every_reward_has_a_known_answer_and_is_from_0_to_1():
    for name in REWARDS:
        for text in ("", "4", "42", "4 2", "<a>42</a>", r"\boxed{42}", "9" * 400):
            assert 0 <= score(name, text, "42") <= 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("", None), ("a 3 b", 3), ("1,234,567", 1234567), ("-0.5", -0.5), ("2, 3,", 3), ("1.", 1)],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


def test_rewards_add_up_by_weight():
    rewards = Rewards([term("exact"), term("share", 0.5), term("short", -2.0)])
    texts, tasks = ["12345", "1234", "99999"], [Task((1,), {"answer": "12345"})] * 3
    assert rewards.score(texts, tasks).totals == pytest.approx([1.5, 0.4 - 2, 0])
    means = {"exact": 1 / 3, "share": 1.8 / 3, "short": 1 / 3}
    assert rewards.score(texts, tasks).means == pytest.approx(means)


def test_what_is_watched_is_measured_and_adds_nothing():
    rewards = Rewards([term("exact", 2.0)], [term("share", 9.0)])
    found = rewards.score(["14"], [Task((1,), {"answer": "12"})])
    assert (found.totals, found.means) == ([0.0], {"exact": 0.0, "share": 0.5})


def test_terms_that_share_a_name_are_told_apart_by_their_setting():
    terms = [RewardTerm("short", longest=2), RewardTerm("short", -1.0, longest=3), term("exact")]
    found = Rewards(terms, [term("matches")]).score(["123"], [Task((1,), {"answer": "123"})])
    assert found.totals == [0 - 1 + 1]
    assert found.means == {"short 2": 0, "short 3": 1, "exact": 1, "matches": 0}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("name", ["exact", "matches", "short"])
def test_the_same_reward_twice_is_refused(name, watched):
    once, again = term(name, 1.0), term(name, 0.5)
    with pytest.raises(UsageError) as error:
        Rewards([once], [again]) if watched else Rewards([once, again])
    assert str(error.value) == (
        f"rewards.name = '{name}': the same reward twice; expected it once, with the sum of the "
        "weights, in rewards or in watched"
    )


def test_each_text_is_scored_by_its_own_task():
    tasks = [Task((1,), {"answer": answer}) for answer in "123"]
    assert Rewards([term("exact")]).score(["1", "3", "3"], tasks).totals == [1, 0, 1]


def test_a_task_that_a_reward_can_never_tell_apart_is_one_line():
    with pytest.raises(TrainingError, match=r"^reward 'number': expected a number in .* 'none'"):
        score("number", "3", "none")
    with pytest.raises(TrainingError, match=r"^reward 'contains': expected a task's answer that"):
        score("contains", "3", " ")


@pytest.mark.parametrize("sample", [{}, {"answer": 42}, {"answer": None}])
def test_a_task_without_an_answer_is_one_line(sample):
    with pytest.raises(TrainingError) as error:
        Rewards([term("number")]).score(["42"], [Task((1,), sample)])
    assert str(error.value) == ("reward 'number': a task has no answer, a string, to compare with")
    assert Rewards([term("short")]).score(["42"], [Task((1,), sample)]).totals == [1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "exakt"},
         "rewards.name = 'exakt' (did you mean 'exact'?): expected one of exact, number, boxed, "
         "contains, share, matches, short"),
        ({"name": "matches", "pattern": "("},
         "rewards.pattern = '(': missing ), unterminated subpattern at position 0"),
        ({"name": "matches"},
         "rewards.pattern: expected with the name 'matches', and only there"),
        ({"name": "exact", "pattern": "x"},
         "rewards.pattern: expected with the name 'matches', and only there"),
        ({"name": "short"},
         "rewards.longest = 0: expected above 0 with the name 'short', and only there"),
        ({"name": "exact", "longest": 3},
         "rewards.longest = 3: expected above 0 with the name 'short', and only there"),
        ({"name": "exact", "weight": float("nan")},
         "rewards.weight = nan: expected a finite number"),
        ({"name": "exact", "wieght": 2.0},
         "unknown key 'wieght' (did you mean 'weight'?); known: name, weight, pattern, longest"),
    ],
)  # fmt: skip
def test_a_wrong_term_is_one_line(table, message):
    with pytest.raises(UsageError) as error:
        build(RewardTerm, table)
    assert str(error.value) == message
