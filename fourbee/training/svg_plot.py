"""One plot of a report as SVG: grid, lines, running means, values under the pointer.

It is no plotting library: lines by update are all that it draws, and their scales are linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

Point = tuple[float, float]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 240, 56, 24, 10, 26
_COLOURS = ("#2f6fdb", "#d9572b", "#2c9c5a", "#9850c8", "#b8860b", "#c23b6b")
_MOST_POINTS, _MOST_VALUES = 600, 60  # that are drawn of a curve, and that tell their value
# A curve that goes up and down by more than so many times its range is drawn pale, with its
# running mean over it.
_NOISY = 4


def colour(number: int) -> str:
    """The colour of run `number`, from 0."""
    return _COLOURS[number % len(_COLOURS)]


def line_plot(title: str, curves: Mapping[int, Sequence[Point]], last_update: float) -> str:
    """The SVG element of the curves, each a run's by its number, from update 0 to `last_update`."""
    values = [y for curve in curves.values() for _, y in curve]
    plot = _Plot((0.0, max(last_update, 1.0)), _range(values))
    lines = "".join(plot.curve(curve, colour(number)) for number, curve in curves.items())
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{escape(title)}'>"
        f"{plot.axes()}{lines}</svg>"
    )


class _Plot:
    """A rectangle of numbers on a rectangle of the page."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x = x
        self.y = y

    def axes(self) -> str:
        """Grid lines with their numbers."""
        parts = []
        for tick in _ticks(*self.y):
            y = self._y(tick)
            parts.append(
                f"<line x1={_LEFT} x2={_WIDTH - _RIGHT + 4} y1={y:.1f} y2={y:.1f} "
                f"stroke='var(--line)'/>"
                f"<text x={_LEFT - 6} y={y + 4:.1f} text-anchor=end>{tick:.4g}</text>"
            )
        for tick in _ticks(*self.x):
            x = self._x(tick)
            parts.append(f"<text x={x:.1f} y={_HEIGHT - 6} text-anchor=middle>{tick:,.6g}</text>")
        return "".join(parts)

    def curve(self, points: Sequence[Point], ink: str) -> str:
        """A line; where it is noisy a pale one and its running mean. The last point is marked."""
        shown = list(points)
        if is_noisy(points):
            shown = running_mean(points, max(2, len(points) // 25))
            lines = self._line(points, ink, 0.25) + self._line(shown, ink, 1.0)
        else:
            lines = self._line(points, ink, 1.0)
        told = [*shown[:: -(-len(shown) // _MOST_VALUES)], shown[-1]]
        values = "".join(self._dot(point, "transparent", 6) for point in told[:-1])
        return lines + values + self._dot(told[-1], ink, 3)

    def _line(self, points: Sequence[Point], ink: str, opacity: float) -> str:
        kept = [*points[:: -(-len(points) // _MOST_POINTS)], points[-1]]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in kept)
        return (
            f"<polyline points='{path}' fill=none stroke='{ink}' stroke-width=1.6 "
            f"opacity='{opacity}'/>"
        )

    def _dot(self, point: Point, fill: str, radius: int) -> str:
        """A circle that tells its value when it is pointed at."""
        x, y = point
        return (
            f"<circle cx={self._x(x):.1f} cy={self._y(y):.1f} r={radius} fill='{fill}'>"
            f"<title>update {x:,.0f}: {y:.5g}</title></circle>"
        )

    def _x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def is_noisy(points: Sequence[Point]) -> bool:
    """Whether a curve goes up and down so much that its course is hard to see."""
    values = [y for _, y in points]
    travelled = sum(abs(after - before) for before, after in pairwise(values))
    return travelled > _NOISY * (max(values) - min(values))


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """At each point the mean of the last `window` values, of fewer at the beginning."""
    mean: list[Point] = []
    total = 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - window][1] if index >= window else 0.0)
        mean.append((x, total / min(index + 1, window)))
    return mean


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest; around a single value some room, as large as it is."""
    low, high = min(values), max(values)
    room = abs(low) / 2 or 0.5
    return (low, high) if high - low > 1e-9 * room else (low - room, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
