"""Worked arithmetic, executed line by line by somebody who only knows the rules of the page."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from fourbee.evaluation.scoring import expression_value, is_right
from fourbee.training.generators.arithmetic import (
    OPERATIONS,
    arithmetic_sample,
    operands,
    result,
    sums_sample,
    worked,
)
from fourbee.training.generators.lexicon import LANGUAGES

from .conftest import last_answer

# One digit a line: `x op y op carry = total`, and what is written and carried.
LINE = re.compile(
    r"(?P<x>\d+)(?P<op>[-+*])(?P<y>\d)(?P<then>[-+])(?P<carried>\d)=(?P<total>\d+)"
    r"(?:, write (?P<write>\d) carry (?P<carry>\d)|，写(?P<写>\d)进(?P<进>\d)"
    r"|(?P<borrow>, borrow 1|，借1))?"
)
EDGES = (0, 1, 5, 9, 10, 11, 90, 99, 100, 101, 109, 190, 199, 900, 909, 990, 999)


def execute(text: str, operation: str, a: int, b: int) -> int:
    """The number that the scratchpad arrives at; every line is checked on the way."""
    *lines, last = text.split("\n")
    negative = operation == "-" and a < b
    if negative:
        a, b = b, a
        assert lines.pop() == f"{a}-{b}={a - b}"
        assert last == f"{b}-{a}={b - a}"
    else:
        assert last.startswith(f"{a}{operation}{b}=")
    assert lines[0] == f"{a}{operation}{b}:"
    shown, carry = "", 0
    for place, line in enumerate(lines[1:]):
        match = LINE.fullmatch(line)
        assert match, line
        x, y = digit(a, place), b if operation == "*" else digit(b, place)
        shown, carry = step(match, operation, x, y, carry, shown)
    assert carry == 0
    assert len(lines) - 1 == max(len(str(a)), 1 if operation == "*" else len(str(b)))
    found = -int(shown) if negative else int(shown)
    assert int(last.partition("=")[2]) == found
    return found


def step(
    match: re.Match[str], operation: str, x: int, y: int, carry: int, shown: str
) -> tuple[str, int]:
    """The digits shown so far and the new carry, from one line."""
    total = int(match["total"])
    assert (match["op"], int(match["y"]), int(match["carried"])) == (operation, y, carry)
    if operation == "-":
        lent = bool(match["borrow"])
        assert match["then"] == "-"
        assert int(match["x"]) == x + 10 * lent
        assert total == x + 10 * lent - y - carry
        assert 0 <= total <= 9
        return f"{total}{shown}", int(lent)
    assert match["then"] == "+"
    assert int(match["x"]) == x
    assert total == (x * y if operation == "*" else x + y) + carry
    write, new = match["write"] or match["写"], match["carry"] or match["进"]
    if write is None:
        return f"{total}{shown}", 0
    assert (int(write), int(new)) == (total % 10, total // 10)
    return f"{write}{shown}", int(new)


def digit(number: int, place: int) -> int:
    return int(str(number).zfill(place + 1)[-1 - place])


def pairs(operation: str) -> list[tuple[int, int]]:
    """All edges, and for each pair of lengths some more; for * every pair there is."""
    if operation == "*":
        return list(itertools.product(range(100), range(10)))
    rng, lengths = random.Random(0), (1, 2, 3)
    drawn = [
        (rng.randrange(10**left), rng.randrange(10**right))
        for left, right in itertools.product(lengths, lengths)
        for _ in range(150)
    ]
    return [*itertools.product(EDGES, EDGES), *drawn]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_line_follows_from_the_one_before_and_ends_at_the_result(operation, language):
    for a, b in pairs(operation):
        text = worked(operation, a, b, language)
        assert execute(text, operation, a, b) == {"+": a + b, "-": a - b, "*": a * b}[operation]
        assert is_right(text, {"kind": "number", "value": result(operation, a, b)})


def test_scratchpads_read_as_written_down():
    assert worked("+", 58, 67, "en") == "58+67:\n8+7+0=15, write 5 carry 1\n5+6+1=12\n58+67=125"
    assert worked("-", 3, 15, "zh") == "15-3:\n5-3-0=2\n1-0-0=1\n15-3=12\n3-15=-12"
    assert worked("-", 20, 5, "en") == "20-5:\n10-5-0=5, borrow 1\n2-0-1=1\n20-5=15"
    assert worked("*", 47, 6, "zh") == "47*6:\n7*6+0=42，写2进4\n4*6+4=28\n47*6=282"


def test_a_drill_of_steps_gives_each_step_its_result(lexicon):
    drilled = set()
    for index in range(2500):
        sample = sums_sample(random.Random(index), lexicon, "en")
        asked, answer = sample.messages[0]["content"], last_answer(sample)
        for line in answer.split("\n"):
            step, _, value = line.partition("=")
            assert expression_value(step) == int(value)
            assert 0 <= int(value) < (10 if "-" in step else 90)
            drilled.add(line)
        assert asked == ", ".join(line.partition("=")[0] for line in answer.split("\n"))
        assert is_right(answer, sample.expect)
    # Every step of every scratchpad is among them.
    for operation in OPERATIONS:
        for a, b in itertools.product((0, 7, 48, 95), (2, 5, 9)):
            for line in worked(operation, a, b, "en").split("\n")[1:-1]:
                step = line.partition(",")[0]
                assert step in drilled or step.startswith(f"{b}-{a}="), step


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operands_are_those_of_the_skill(operation):
    rng = random.Random(1)
    drawn = [operands(rng, operation) for _ in range(3000)]
    limit = (99, 9) if operation == "*" else (999, 999)
    for values, most in zip(zip(*drawn, strict=True), limit, strict=True):
        assert 0.95 * most < max(values) <= most
    assert {len(str(a)) for a, _ in drawn} == ({1, 2} if operation == "*" else {1, 2, 3})
    if operation != "*":
        assert min(min(pair) for pair in drawn) == 0
        below = sum(a < b for a, b in drawn) / len(drawn)
        assert 0.02 < below < 0.1 if operation == "-" else 0.4 < below < 0.6


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sample_asks_for_what_its_answer_works_out(lexicon, language):
    for index in range(300):
        sample = arithmetic_sample(random.Random(index), lexicon, language)
        equation = last_answer(sample).splitlines()[-1]
        match = re.fullmatch(r"(\d+)([-+*])(\d+)=(-?\d+)", equation)
        assert match
        asked = re.findall(r"\d+", sample.messages[0]["content"])
        assert {match[1], match[3]} <= set(asked)
        assert sample.expect == {"kind": "number", "value": int(match[4])}
