"""How long a chunk of a prompt will take: a prediction, corrected by what steps took.

A row costs the weights once and every key before it a little; how much a little is comes from the
model's shape, how fast the machine is from the steps themselves. Rows of a step that only decodes
are not asked about: they are bound by memory, not by their number. No arrays here.
"""

from __future__ import annotations

# Steps with fewer rows are bound by reading the weights and say nothing of the cost of a row.
_MIN_ROWS = 64
# A first guess, slow on purpose: the first steps are then short rather than long.
_FIRST_GUESS_MS = 1.0
_NEW_SHARE = 0.3


class StepCost:
    """Milliseconds of rows, in units of one row without keys before it."""

    def __init__(self, key_share: float = 0.0) -> None:
        """`key_share`: what a key costs a row, by what all weights cost it."""
        self._key_share = key_share
        self._unit_ms = _FIRST_GUESS_MS
        self._measured = False

    def units(self, start: int, count: int) -> float:
        """Of `count` rows from position `start` on."""
        return count * (1 + self._key_share * (start + count / 2))

    def milliseconds(self, start: int, count: int) -> float:
        return self.units(start, count) * self._unit_ms

    def rows_within(self, start: int, most: int, milliseconds: float) -> int:
        """As many of at most `most` rows as take no longer; one at least."""
        per_row = self._unit_ms * (1 + self._key_share * (start + most / 2))
        return max(1, min(most, int(milliseconds / per_row)))

    def observe(self, rows: int, units: float, milliseconds: float) -> None:
        """A step of `rows` rows, `units` in all, took this long."""
        if rows < _MIN_ROWS or units <= 0:
            return
        share = _NEW_SHARE if self._measured else 1.0
        self._unit_ms += share * (milliseconds / units - self._unit_ms)
        self._measured = True
