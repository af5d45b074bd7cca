"""Abacus: sums for a model that trains in a minute, in every form that a stage of training reads.

Numbers are written as an abacus shows them, rod by rod from the ones up, on a fixed number of rods:
with three of them 37 + 58 is "730+850" and makes "5900". So written, every digit stands at a fixed
distance from those that it comes from, which a network of two layers can learn. Every answer is
computed, never guessed; prompts that are held out are in no training file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import UsageError
from fourbee.training.checks import at_least
from fourbee.training.generators.generate import is_held_out

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AbacusRecipe:
    """How many samples of each form; every key of a recipe file is a field here."""

    output: Path = field(default_factory=lambda: Path("runs/abacus/data"))
    seed: int = 0
    digits: int = 4  # of the longest operand
    conversations: int = 20_000  # for supervised fine-tuning
    pairs: int = 4_000  # preferences: the right answer, and a near miss
    tasks: int = 4_000  # prompts with their answers, for rewards
    held_out: int = 400  # of each form, for tests

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 9:
            raise UsageError(f"digits = {self.digits}: expected from 1 to 9")
        at_least(0, self, *FORMS, "held_out")


@dataclass(frozen=True)
class Sum:
    """An addition or a subtraction whose result is not below zero."""

    a: int
    b: int
    sign: str
    rods: int  # of an operand; the result has one more

    @property
    def prompt(self) -> str:
        return f"{on_rods(self.a, self.rods)}{self.sign}{on_rods(self.b, self.rods)}"

    @property
    def answer(self) -> str:
        """The result."""
        result = self.a + self.b if self.sign == "+" else self.a - self.b
        return on_rods(result, self.rods + 1)

    @property
    def carries(self) -> int:
        """Carries, or borrows: what makes a sum hard beside its length."""
        count, carried = 0, 0
        a, b = self.a, self.b
        while a or b:
            here = a % 10 + b % 10 + carried if self.sign == "+" else a % 10 - b % 10 - carried
            carried = int(here > 9 or here < 0)
            count += carried
            a, b = a // 10, b // 10
        return count


def draw_sum(rng: random.Random, digits: int) -> Sum:
    """Operands of 1 to `digits` digits, each length as likely."""
    a, b = (rng.randrange(10 ** rng.randint(1, digits)) for _ in range(2))
    sign = rng.choice("+-")
    if sign == "-":
        a, b = max(a, b), min(a, b)
    return Sum(a, b, sign, digits)


def on_rods(number: int, rods: int) -> str:
    """The digits from the ones up, zeros where a rod is empty."""
    return str(number).zfill(rods)[::-1]


def conversation(one: Sum, rng: random.Random) -> Record:
    """A question and its answer."""
    turns = [user(one), {"role": "assistant", "content": one.answer}]
    expect = {"kind": "one_of", "value": [one.answer]}
    return {"messages": turns, "expect": expect, **_about(one)}


def pair(one: Sum, rng: random.Random) -> Record:
    """The right answer and one that is nearly right."""
    return {
        "prompt": [user(one)],
        "chosen": one.answer,
        "rejected": near_miss(one, rng),
        **_about(one),
    }


def task(one: Sum, rng: random.Random) -> Record:
    """A question whose answer can be checked."""
    return {"prompt": [user(one)], "answer": one.answer, **_about(one)}


def near_miss(one: Sum, rng: random.Random) -> str:
    """A wrong answer as it is made: a carry too many or too few, a digit misread, two exchanged."""
    answer = one.answer
    while True:
        place = rng.randrange(len(answer))
        kind = rng.randrange(4)
        if kind == 3:
            place = max(place, 1)
            swapped = answer[place] + answer[place - 1]
            wrong = f"{answer[: place - 1]}{swapped}{answer[place + 1 :]}"
        else:
            step = rng.choice((-1, 1)) if kind < 2 else rng.randrange(1, 10)
            wrong = f"{answer[:place]}{(int(answer[place]) + step) % 10}{answer[place + 1 :]}"
        if wrong != answer:
            return wrong


def user(one: Sum) -> Record:
    """The question as a message."""
    return {"role": "user", "content": one.prompt}


FORMS: Mapping[str, Callable[[Sum, random.Random], Record]] = {
    "conversations": conversation,
    "pairs": pair,
    "tasks": task,
}


def write_abacus(recipe: AbacusRecipe) -> list[Path]:
    """Writes a training file and a held-out file of each form; the same recipe, the same bytes."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    written = []
    for form in FORMS:
        for held_out in (False, True):
            count = recipe.held_out if held_out else int(getattr(recipe, form))
            path = recipe.output / f"{form}{'-held-out' if held_out else ''}.jsonl"
            partial = path.with_suffix(".partial")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(record) + "\n" for record in _records(recipe, form, held_out, count)
                )
            written.append(partial.replace(path))
    return written


def _records(recipe: AbacusRecipe, form: str, held_out: bool, count: int) -> Iterator[Record]:
    for index in range(count):
        rng = random.Random(f"{recipe.seed}/{form}/{held_out}/{index}")
        one = draw_sum(rng, recipe.digits)
        while is_held_out(one.prompt) != held_out:
            one = draw_sum(rng, recipe.digits)
        yield FORMS[form](one, rng)


def _about(one: Sum) -> Record:
    """What is common to all forms: `difficulty` is the longest operand's digits and the carries."""
    skill = "add" if one.sign == "+" else "subtract"
    return {
        "skill": skill,
        "language": "en",
        "difficulty": len(str(max(one.a, one.b))) + one.carries,
    }
