"""What a run leaves behind: one JSON document, a table in Markdown, a plot."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fourbee.benchmarks.work import Rate, Work

Results = Mapping[Work, Mapping[str, Rate]]


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    from fourbee.kernels import _native

    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "processor": _processor(),
        "instructions": _native.isa(),
        "threads": _native.threads(),
        "python": platform.python_version(),
        "fourbee": importlib.metadata.version("fourbee"),
        "commit": commit or "unknown",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    """The name, with family and model where the name says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    words = {key.strip(): value.strip() for key, value in values.items()}
    return (
        f"{words.get('model name', platform.machine())}, family {words.get('cpu family', '?')}, "
        f"model {words.get('model', '?')}"
    )


def document(about: Mapping[str, Any], results: Results) -> str:
    """The JSON document, in one line."""
    rows = [
        {"work": work.name, **asdict(work), "tokens_per_second": _plain(by)}
        for work, by in results.items()
    ]
    return json.dumps({**about, "machine": machine(), "results": rows})


def _plain(rates: Mapping[str, Rate]) -> dict[str, dict[str, float]]:
    return {name: asdict(rate) for name, rate in rates.items()}


def table(results: Results) -> str:
    """Medians with lowest and highest, and how many times the peers' rate ours is."""
    names = list(next(iter(results.values())))
    peers = names[1:]
    heads = ["work", *names, *(f"{names[0]} / {peer}" for peer in peers)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for work, by in results.items():
        cells = [work.name]
        cells += [f"{r.median:,.1f} ({r.low:,.1f} - {r.high:,.1f})" for r in by.values()]
        cells += [f"{by[names[0]].median / by[peer].median:.2f}" for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Results, title: str, path: Path) -> bool:
    """Bars of the medians; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(8, 0.7 * len(results) + 1.5), layout="constrained")
    axes = figure.subplots()
    names = list(next(iter(results.values())))
    for index, name in enumerate(names):
        places = [row + 0.8 * index / len(names) for row in range(len(results))]
        values = [by[name].median for by in results.values()]
        bars = axes.barh(places, values, 0.75 / len(names), label=name)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    middle = 0.4 * (len(names) - 1) / len(names)
    axes.set_yticks([row + middle for row in range(len(results))], [w.name for w in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("tokens a second, logarithmic")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
