"""A run's report: one HTML file with the curves of its log, its recipe and its samples.

Everything is inside of the file: plots are SVG, there is no script and nothing to fetch. Several
runs are drawn over each other. What a run logs beyond the known keys is drawn too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import TrainingError
from fourbee.training.run_log import LOG, read_log

Point = tuple[float, float]
Curves = dict[str, list[Point]]  # name of a measure -> (update, value)

# What comes first, as people look for it; the other measures follow as they are logged.
_FIRST = ("loss", "accuracy", "exact", "reward", "margin", "held_out", "reference_kl")
_HIDDEN = ("update", "tokens", "seconds", "seconds_of_update")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 240, 56, 26
_COLOURS = ("#2f6fdb", "#d9572b", "#2c9c5a", "#9850c8", "#b8860b", "#c23b6b")
# Above so many points a curve is drawn pale, with its running mean over it.
_SMOOTHED, _MOST_POINTS = 60, 600

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #667; --line: #d8dce4; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ee; --dim: #99a; --line: #3a404c; --back: #15181e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .9rem; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
table { border-collapse: collapse; font-size: .9rem; } td, th { text-align: left;
  padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.text { white-space: pre-wrap; } pre { font-size: .8rem; overflow-x: auto; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
"""


@dataclass(frozen=True)
class Run:
    """What a report tells of a run."""

    name: str
    curves: Curves
    samples: list[dict[str, Any]]  # of the last time that there were some
    recipe: str
    last: Mapping[str, Any]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Writes the report of one or more run folders. TrainingError for a folder without a log."""
    runs = [read_run(folder) for folder in folders]
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    partial.write_text(_page(runs), encoding="utf-8")
    return partial.replace(output)


def read_run(folder: Path) -> Run:
    """The curves and samples of a run folder."""
    records = read_log(folder / LOG)
    if not records:
        raise TrainingError(f"{folder}: no {LOG}; expected the output folder of a training run")
    curves: Curves = {}
    samples: list[dict[str, Any]] = []
    last: Mapping[str, Any] = {}
    for record in records:
        if "samples" in record:
            samples = record["samples"]["items"]
        elif "validation" in record:
            measured = record["validation"]
            for name, values in measured.items():
                if isinstance(values, Mapping):
                    for key, value in values.items():
                        _add(curves, f"{name}: {key}", measured["update"], value)
        else:
            last = record
            for key, value in record.items():
                if key not in _HIDDEN:
                    _add(curves, key, record["update"], value)
    recipe = folder / "recipe.json"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return Run(folder.name if folder.name else str(folder), curves, samples, text, last)


def _add(curves: Curves, name: str, update: float, value: Any) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        curves.setdefault(name, []).append((float(update), float(value)))


def _page(runs: Sequence[Run]) -> str:
    title = "Training: " + ", ".join(run.name for run in runs)
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    names.sort(key=_place)
    plots = "".join(_figure(name, runs) for name in names)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        _summary(runs),
        f"<h2>Curves, by update</h2><div class=plots>{plots}</div>",
    ]
    for run in runs:
        if run.samples:
            parts.append(f"<h2>What {escape(run.name)} writes</h2>{_samples(run.samples)}")
        if run.recipe:
            parts.append(
                f"<details><summary>Recipe of {escape(run.name)}</summary>"
                f"<pre>{escape(run.recipe)}</pre></details>"
            )
    return "\n".join(parts) + "\n"


def _place(name: str) -> int:
    for place, known in enumerate(_FIRST):
        if name == known or name.startswith(f"{known}:") or name.endswith(f": {known}"):
            return place
    return len(_FIRST)


def _summary(runs: Sequence[Run]) -> str:
    rows = ["<tr><th><th>updates<th>tokens<th>seconds<th>last loss"]
    for number, run in enumerate(runs):
        last = run.last
        rows.append(
            f"<tr><td><span class=key style='background:{_colour(number)}'></span>"
            f"{escape(run.name)}<td>{last.get('update', 0):,}<td>{last.get('tokens', 0):,}"
            f"<td>{last.get('seconds', 0):,.0f}<td>{last.get('loss', math.nan):.4g}"
        )
    return f"<table>{''.join(rows)}</table>"


def _samples(items: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class=text>{escape(str(one['prompt']))}<td class=text>{escape(str(one['text']))}"
        for one in items
    )
    return f"<table><tr><th>prompt<th>text{rows}</table>"


def _figure(name: str, runs: Sequence[Run]) -> str:
    drawn = [(number, run.curves[name]) for number, run in enumerate(runs) if name in run.curves]
    points = [point for _, curve in drawn for point in curve]
    plot = _Plot(points)
    lines = "".join(plot.curve(curve, _colour(number)) for number, curve in drawn)
    return (
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{escape(name)}'>"
        f"{plot.axes()}{lines}</svg></figure>"
    )


class _Plot:
    """A square of numbers on a rectangle of the page."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.x = _range([x for x, _ in points])
        self.y = _range([y for _, y in points])

    def axes(self) -> str:
        """Grid lines with their numbers."""
        parts = []
        for tick in _ticks(*self.y):
            y = self._y(tick)
            parts.append(
                f"<line x1={_LEFT} x2={_WIDTH - 20} y1={y:.1f} y2={y:.1f} stroke='var(--line)'/>"
                f"<text x={_LEFT - 6} y={y + 4:.1f} text-anchor=end>{tick:.4g}</text>"
            )
        for tick in _ticks(*self.x):
            x = self._x(tick)
            parts.append(f"<text x={x:.1f} y={_HEIGHT - 6} text-anchor=middle>{tick:,.6g}</text>")
        return "".join(parts)

    def curve(self, points: Sequence[Point], colour: str) -> str:
        """A line; of many points a pale one and their running mean. Its ends tell their values."""
        if len(points) == 1:
            return self._dot(points[0], colour)
        if len(points) <= _SMOOTHED:
            return self._line(points, colour, 1.0) + self._dot(points[-1], colour)
        mean = _running_mean(points, len(points) // 25)
        return (
            self._line(points, colour, 0.25)
            + self._line(mean, colour, 1.0)
            + self._dot(mean[-1], colour)
        )

    def _line(self, points: Sequence[Point], colour: str, opacity: float) -> str:
        step = -(-len(points) // _MOST_POINTS)
        kept = [*points[::step], points[-1]]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in kept)
        return (
            f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.6 "
            f"opacity='{opacity}'/>"
        )

    def _dot(self, point: Point, colour: str) -> str:
        x, y = point
        return (
            f"<circle cx={self._x(x):.1f} cy={self._y(y):.1f} r=3 fill='{colour}'>"
            f"<title>update {x:,.0f}: {y:.5g}</title></circle>"
        )

    def _x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 24)

    def _y(self, value: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - 10)


def _running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of each point and the `window` before it."""
    mean: list[Point] = []
    total = 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - window][1] if index >= window else 0.0)
        mean.append((x, total / min(index + 1, window)))
    return mean


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
