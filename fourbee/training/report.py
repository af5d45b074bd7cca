"""A run's report: one HTML file with the curves of its log, its recipe and its samples.

Everything is inside of the file: plots are SVG, there is no script and nothing to fetch. Several
runs are drawn over each other, and what differs between their recipes is said. What a run logs
beyond the known keys is drawn too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import TrainingError
from fourbee.foundation.json_files import read_json_object
from fourbee.training.environment import ENVIRONMENT
from fourbee.training.run_folder import RECIPE
from fourbee.training.run_log import LOG, read_log
from fourbee.training.svg_plot import Point, colour, line_plot

Curves = dict[str, list[Point]]  # name of a measure -> (update, value)

# What comes first, as people look for it; the other measures follow as they are logged.
_FIRST = ("loss", "accuracy", "exact", "reward", "margin", "held_out", "reference_kl")
_HIDDEN = ("update", "tokens", "seconds", "seconds_of_update")

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
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.text { white-space: pre-wrap; } summary { cursor: pointer; margin-top: 1rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
"""


@dataclass(frozen=True)
class Run:
    """What a report tells of a run."""

    name: str
    curves: Curves
    samples: list[dict[str, Any]]  # of the last time that there were some
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    last: Mapping[str, Any]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Writes the report of one or more run folders. TrainingError for a folder without a log."""
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    partial.write_text(_page(runs), encoding="utf-8")
    return partial.replace(output)


def write_curves(title: str, curves: Mapping[str, Sequence[Point]], output: Path) -> None:
    """A page with one plot of curves by name, over whatever the title says."""
    names = "".join(f"<p>{_key(number)}{escape(name)}" for number, name in enumerate(curves))
    last = max(x for curve in curves.values() for x, _ in curve)
    plot = line_plot(title, dict(enumerate(curves.values())), last)
    output.write_text(f"{_head(title)}{names}<figure>{plot}</figure>\n", encoding="utf-8")


def read_run(folder: Path, name: str) -> Run:
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
            for group, values in measured.items():
                if isinstance(values, Mapping):
                    for key, value in values.items():
                        _add(curves, f"{group}: {key}", measured["update"], value)
        else:
            last = {key: one for key, one in record.items() if isinstance(one, int | float)}
            for key, value in record.items():
                if key not in _HIDDEN:
                    _add(curves, key, record["update"], value)
    recipe, environment = (_json(folder / one) for one in (RECIPE, ENVIRONMENT))
    return Run(name, curves, samples, recipe, environment, last)


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their own names, or where these are the same, their paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _json(path: Path) -> Mapping[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _add(curves: Curves, name: str, update: float, value: Any) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        curves.setdefault(name, []).append((float(update), float(value)))


def _page(runs: Sequence[Run]) -> str:
    title = "Training: " + ", ".join(run.name for run in runs)
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    names.sort(key=_place)
    plots = "".join(_figure(name, runs) for name in names if _moves(name, runs))
    parts = [
        _head(title),
        _summary(runs),
        f"<h2>Curves, by update</h2><div class=plots>{plots}</div>",
        *(
            f"<h2>What {escape(run.name)} writes</h2>{_samples(run.samples)}"
            for run in runs
            if run.samples
        ),
        f"<h2>Last numbers</h2>{_last_numbers(names, runs)}",
    ]
    recipes = [run.recipe for run in runs]
    if differing := [key for key in _keys(recipes) if len(_values(key, recipes)) > 1]:
        parts.append(f"<h2>Settings that differ</h2>{_settings(differing, runs, recipes)}")
    for heading, tables in (
        ("Recipe", recipes),
        ("Environment", [run.environment for run in runs]),
    ):
        if keys := _keys(tables):
            table = _settings(keys, runs, tables)
            parts.append(f"<details><summary>{heading}</summary>{table}</details>")
    return "\n".join(parts) + "\n"


def _head(title: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    )


def _place(name: str) -> int:
    for place, known in enumerate(_FIRST):
        if name == known or name.startswith(f"{known}:") or name.endswith(f": {known}"):
            return place
    return len(_FIRST)


def _moves(name: str, runs: Sequence[Run]) -> bool:
    """Whether there is something to see: what is always the same is told as a last number."""
    return len({y for run in runs for _, y in run.curves.get(name, ())}) > 1


def _summary(runs: Sequence[Run]) -> str:
    rows = ["<tr><th><th>updates<th>tokens<th>seconds<th>last loss"]
    for number, run in enumerate(runs):
        last = run.last
        rows.append(
            f"<tr><td>{_label(number, run)}"
            f"<td class=number>{last.get('update', 0):,}<td class=number>{last.get('tokens', 0):,}"
            f"<td class=number>{last.get('seconds', 0):,.0f}"
            f"<td class=number>{last.get('loss', math.nan):.4g}"
        )
    return f"<table>{''.join(rows)}</table>"


def _label(number: int, run: Run) -> str:
    return f"{_key(number)}{escape(run.name)}"


def _key(number: int) -> str:
    return f"<span class=key style='background:{colour(number)}'></span>"


def _samples(items: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class=text>{escape(str(one['prompt']))}<td class=text>{escape(str(one['text']))}"
        for one in items
    )
    return f"<table><tr><th>prompt<th>text{rows}</table>"


def _figure(name: str, runs: Sequence[Run]) -> str:
    curves = {number: run.curves[name] for number, run in enumerate(runs) if name in run.curves}
    last = max(x for run in runs for curve in run.curves.values() for x, _ in curve)
    caption = f"<figcaption>{escape(name)}</figcaption>"
    return f"<figure>{caption}{line_plot(name, curves, last)}</figure>"


def _last_numbers(names: Sequence[str], runs: Sequence[Run]) -> str:
    rows = []
    for name in names:
        cells = (f"{run.curves[name][-1][1]:.5g}" if name in run.curves else "" for run in runs)
        rows.append(f"<tr><td>{escape(name)}" + "".join(f"<td class=number>{one}" for one in cells))
    return f"<table>{_heads(runs)}{''.join(rows)}</table>"


def _settings(keys: Sequence[str], runs: Sequence[Run], tables: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for key in keys:
        cells = (json.dumps(one[key], ensure_ascii=False) if key in one else "" for one in tables)
        rows.append(f"<tr><td>{escape(key)}" + "".join(f"<td>{escape(one)}" for one in cells))
    return f"<table>{_heads(runs)}{''.join(rows)}</table>"


def _heads(runs: Sequence[Run]) -> str:
    return "<tr><th>" + "".join(f"<th>{_label(number, run)}" for number, run in enumerate(runs))


def _keys(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for table in tables for key in table))


def _values(key: str, tables: Sequence[Mapping[str, Any]]) -> set[str]:
    return {json.dumps(table.get(key)) for table in tables}
