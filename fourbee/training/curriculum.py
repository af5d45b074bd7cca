"""How data changes over a run: settings given at points of it, linear in between."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fourbee.foundation.errors import UsageError


@dataclass(frozen=True)
class CurriculumPoint:
    """What holds at a point of the run; what is absent is as at the points before and after.

    Two points at the same place are a step. Before the first and after the last point that give a
    key it stays as it is there.
    """

    at: float  # share of the run's tokens, 0 to 1
    shares: Mapping[str, float] = field(default_factory=dict)  # of the groups of the mixture
    difficulty: float | None = None  # only the easiest such fraction of each source
    length: int | None = None  # the longest piece, in tokens
    tokens_per_update: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise UsageError(f"curriculum.at = {self.at}: expected a share of the run, 0 to 1")
        if self.difficulty is not None and not 0 < self.difficulty <= 1:
            raise UsageError(
                f"curriculum.difficulty = {self.difficulty}: expected more than 0, at most 1"
            )
        check_shares("curriculum", self.shares)
        for key, least in (("length", 2), ("tokens_per_update", 2)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UsageError(f"curriculum.{key} = {value}: expected at least {least}")


def check_shares(table: str, shares: Mapping[str, float]) -> None:
    """UsageError for one that is no share."""
    for name, share in shares.items():
        if not 0 <= share < math.inf:
            raise UsageError(f"{table}.shares.{name} = {share}: expected at least 0")


class Curriculum:
    """The values of a curriculum at any share of the run; empty points change nothing."""

    def __init__(self, points: Sequence[CurriculumPoint]) -> None:
        places = [point.at for point in points]
        if places != sorted(places):
            raise UsageError(f"curriculum: points at {places}: expected in order of `at`")
        groups = {name for point in points for name in point.shares}
        given = [point for point in points if point.shares]
        self.shares = {
            name: Schedule([(point.at, point.shares.get(name, 0.0)) for point in given])
            for name in sorted(groups)
        }
        self.difficulty = _schedule(points, "difficulty")
        self.length = _schedule(points, "length")
        self.tokens_per_update = _schedule(points, "tokens_per_update")


class Schedule:
    """A value that is linear between points `(share of the run, value)`, constant outside."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.places = [place for place, _ in points]
        self.values = [float(value) for _, value in points]

    def at(self, share: float, default: float) -> float:
        """The value there; `default` without points."""
        if not self.places:
            return default
        after = bisect_right(self.places, share)
        if after in (0, len(self.places)):
            return self.values[max(0, after - 1)]
        (start, end), (low, high) = (
            self.places[after - 1 : after + 1],
            self.values[after - 1 : after + 1],
        )
        return low + (high - low) * (share - start) / (end - start)


def _schedule(points: Sequence[CurriculumPoint], key: str) -> Schedule:
    given = [(point.at, getattr(point, key)) for point in points]
    return Schedule([(place, value) for place, value in given if value is not None])
