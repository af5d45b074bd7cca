"""Verifiable rewards: named functions of an answer's text and the task it answers.

A recipe lists `[[rewards]]` with a name and a weight; an answer's reward is their weighted sum.
Each gives 0 to 1, so that a weight says what a reward is worth (below 0: a penalty).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.settings import nearest
from fourbee.training.tasks import Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_BOX = "\\boxed{"


@dataclass(frozen=True)
class RewardTerm:
    """One reward and what it counts."""

    name: str
    weight: float = 1.0
    pattern: str = ""  # of `matches`: a regular expression that the whole answer has to match
    longest: int = 0  # of `short`: characters up to which an answer is short

    def __post_init__(self) -> None:
        if self.name not in REWARDS:
            raise UsageError(
                f"rewards.name = {self.name!r}{nearest(self.name, REWARDS)}: expected one of "
                f"{', '.join(REWARDS)}"
            )
        if not math.isfinite(self.weight):
            raise UsageError(f"rewards.weight = {self.weight}: expected a finite number")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f"rewards.pattern = {self.pattern!r}: {error}") from None
        if (self.name == "matches") != bool(self.pattern):
            raise UsageError("rewards.pattern: expected with the name 'matches', and only there")
        if (self.name == "short") != (self.longest > 0):
            raise UsageError(
                f"rewards.longest = {self.longest}: expected above 0 with the name 'short', and "
                "only there"
            )


@dataclass(frozen=True)
class Scored:
    """What a recipe's terms give answers."""

    totals: list[float]  # the weighted sum of each answer
    means: dict[str, float]  # of each term, before its weight, by name


class Rewards:
    """The weighted sum of a recipe's terms, and beside it what is only `watched`.

    A name stands for its term in the log; terms that share one are told apart by their setting.
    UsageError for two terms that are the same reward.
    """

    def __init__(self, terms: Sequence[RewardTerm], watched: Sequence[RewardTerm] = ()) -> None:
        weightless = [replace(term, weight=0.0) for term in watched]
        self.terms = {_told(one, (*terms, *watched)): one for one in (*terms, *weightless)}

    def score(self, texts: Sequence[str], tasks: Sequence[Task]) -> Scored:
        """The rewards of answers. TrainingError for a task without what a term needs."""
        totals, means = [0.0] * len(texts), {}
        for name, term in self.terms.items():
            reward = REWARDS[term.name]
            column = [
                float(reward(text, task.sample, term))
                for text, task in zip(texts, tasks, strict=True)
            ]
            totals = [total + term.weight * one for total, one in zip(totals, column, strict=True)]
            means[name] = sum(column) / len(texts)
        return Scored(totals, means)


def _told(term: RewardTerm, terms: Sequence[RewardTerm]) -> str:
    """The name of a term among others in the log."""
    alike = [one for one in terms if one.name == term.name]
    setting = term.pattern or term.longest
    if sum((one.pattern or one.longest) == setting for one in alike) > 1:
        raise UsageError(
            f"rewards.name = {term.name!r}: the same reward twice; expected it once, with the sum "
            "of the weights, in rewards or in watched"
        )
    return term.name if len(alike) == 1 else f"{term.name} {setting}"


def last_number(text: str) -> float | None:
    """The last number in a text, thousands' commas left out; None without one."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _answer(sample: Mapping[str, Any], name: str) -> str:
    answer = sample.get("answer")
    if not isinstance(answer, str):
        raise TrainingError(f"reward {name!r}: a task has no answer, a string, to compare with")
    return answer


def _exact(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    return text.strip() == _answer(sample, term.name).strip()


def _number(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    answer = _answer(sample, term.name)
    wanted = last_number(answer)
    if wanted is None:
        raise TrainingError(f"reward 'number': expected a number in the task's answer {answer!r}")
    return last_number(text) == wanted


def _boxed(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    found, wanted = _last_box(text), _answer(sample, term.name)
    if found is None or found.strip() == wanted.strip():
        return found is not None
    number = last_number(wanted)
    return number is not None and last_number(found) == number


def _last_box(text: str) -> str | None:
    """What the last \\boxed{} holds, braces within it too; None without one that is closed."""
    _, box, rest = text.rpartition(_BOX)
    depth = 1
    for place, letter in enumerate(rest if box else ""):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return rest[:place]
    return None


def _contains(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    wanted = _answer(sample, term.name).strip()
    if not wanted:
        raise TrainingError("reward 'contains': expected a task's answer that is not empty")
    return wanted in text


def _matches(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    return re.fullmatch(term.pattern, text, re.DOTALL) is not None


def _short(text: str, sample: Mapping[str, Any], term: RewardTerm) -> bool:
    return len(text) <= term.longest


def _share(text: str, sample: Mapping[str, Any], term: RewardTerm) -> float:
    wanted = _answer(sample, term.name)
    right = sum(one == other for one, other in zip(text, wanted, strict=False))
    return right / max(len(text), len(wanted), 1)


REWARDS: Mapping[str, Callable[[str, Mapping[str, Any], RewardTerm], float]] = {
    "exact": _exact,  # the answer is the task's
    "number": _number,  # its last number is the last one of the task's answer (GSM8K)
    "boxed": _boxed,  # its last \boxed{} holds it
    "contains": _contains,
    "share": _share,  # of the characters that are right at their place
    "matches": _matches,
    "short": _short,
}
