"""Step-by-step arithmetic: digits from right to left, carries written out, the result last."""

from __future__ import annotations

import random

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.sample import Sample, assistant, user
from fourbee.training.generators.wording import framed

OPERATIONS = ("+", "-", "*")
_WRITE = {"en": ", write {w} carry {c}", "zh": "，写{w}进{c}"}
_BORROW = {"en": ", borrow 1", "zh": "，借1"}


def arithmetic_sample(rng: random.Random, lexicon: Lexicon, language: Language) -> Sample:
    """A question of the lexicon with operands of this skill, and its worked answer."""
    operation = rng.choice(OPERATIONS)
    a, b = operands(rng, operation)
    template = rng.choice(lexicon.arithmetic_questions[operation][language])
    question = framed(rng, lexicon, template.format(a=a, b=b), language)
    expect = {"kind": "number", "value": result(operation, a, b)}
    turns = (user(question), assistant(worked(operation, a, b, language)))
    return Sample("arithmetic", language, turns, expect=expect)


def sums_sample(rng: random.Random, lexicon: Lexicon, language: Language) -> Sample:
    """A dozen of the one-digit steps that scratchpads are made of: their results are facts.

    A scratchpad shows three of them among sixty tokens that are easy; without this drill they
    were not learned from thousands of scratchpads (docs/log.md).
    """
    steps = [_step(rng) for _ in range(rng.randint(8, 16))]
    lines = [f"{step}={value}" for step, value in steps]
    answer = "\n".join(lines)
    turns = (user(", ".join(step for step, _ in steps)), assistant(answer))
    return Sample("sums", language, turns, expect={"kind": "one_of", "value": [answer]})


def _step(rng: random.Random) -> tuple[str, int]:
    """One step of a scratchpad, and its result."""
    operation = rng.choice("+-*")
    x, y, carried = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 1)
    if operation == "+":
        return f"{x}+{y}+{carried}", x + y + carried
    if operation == "-":
        lent = x + 10 if x - y - carried < 0 else x
        return f"{lent}-{y}-{carried}", lent - y - carried
    y, carried = rng.randint(2, 9), rng.randint(0, 8)
    return f"{x}*{y}+{carried}", x * y + carried


def operands(rng: random.Random, operation: str) -> tuple[int, int]:
    """Operands of the skill: up to 3 digits for + and - (mostly a >= b), 2 by 1 for *."""
    if operation == "*":
        return rng.randint(2, 99), rng.randint(2, 9)
    a, b = (_up_to_three_digits(rng) for _ in range(2))
    if operation == "-" and a < b and rng.random() < 0.9:
        a, b = b, a
    return a, b


def result(operation: str, a: int, b: int) -> int:
    """The exact result."""
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def worked(operation: str, a: int, b: int, language: Language) -> str:
    """The scratchpad, one line a digit, and `a+b=result` as the last line."""
    steps = {"+": _addition, "-": _subtraction, "*": _multiplication}[operation]
    head = f"{a}{operation}{b}"
    if operation == "-" and a < b:
        lines = [f"{b}-{a}:", *_subtraction(b, a, language), f"{b}-{a}={b - a}"]
    else:
        lines = [f"{head}:", *steps(a, b, language)]
    return "\n".join([*lines, f"{head}={result(operation, a, b)}"])


def _up_to_three_digits(rng: random.Random) -> int:
    return (
        rng.randint(0, 999) if rng.random() < 0.6 else rng.randint(0, 10 ** rng.randint(1, 3) - 1)
    )


def _digits(number: int, width: int) -> list[int]:
    """Digits from right to left, with leading zeros to `width`."""
    return [number // 10**place % 10 for place in range(width)]


def _carried(total: int, last: bool, language: Language) -> str:
    if last:
        return str(total)
    return f"{total}" + _WRITE[language].format(w=total % 10, c=total // 10)


def _addition(a: int, b: int, language: Language) -> list[str]:
    width, carry, lines = max(len(str(a)), len(str(b))), 0, []
    digits = zip(_digits(a, width), _digits(b, width), strict=True)
    for place, (x, y) in enumerate(digits):
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}=" + _carried(total, place == width - 1, language))
        carry = total // 10
    return lines


def _subtraction(a: int, b: int, language: Language) -> list[str]:
    width, borrow, lines = len(str(a)), 0, []
    digits = zip(_digits(a, width), _digits(b, width), strict=True)
    for x, y in digits:
        lent = x - y - borrow < 0
        line = f"{x + 10 if lent else x}-{y}-{borrow}={x - y - borrow + (10 if lent else 0)}"
        lines.append(line + (_BORROW[language] if lent else ""))
        borrow = int(lent)
    return lines


def _multiplication(a: int, b: int, language: Language) -> list[str]:
    width, carry, lines = len(str(a)), 0, []
    for place, x in enumerate(_digits(a, width)):
        total = x * b + carry
        lines.append(f"{x}*{b}+{carry}=" + _carried(total, place == width - 1, language))
        carry = total // 10
    return lines
