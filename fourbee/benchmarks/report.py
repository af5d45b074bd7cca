"""What a run leaves behind: rows of a JSON document, tables in Markdown, a plot."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourbee.benchmarks.work import Rate, Work
from fourbee.foundation.runtime import processor_facts

if TYPE_CHECKING:
    from fourbee.benchmarks.lasting import Lasting
    from fourbee.benchmarks.outside import Outside
    from fourbee.benchmarks.over_http import OverHttp
    from fourbee.benchmarks.sparse import SparseReading
    from fourbee.benchmarks.streaming import Streaming

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
    words = processor_facts()
    if not words:
        return platform.processor() or platform.machine()
    return (
        f"{words.get('model name', platform.machine())}, family {words.get('cpu family', '?')}, "
        f"model {words.get('model', '?')}"
    )


def rows(results: Results) -> list[dict[str, Any]]:
    """The works and their rates, for the JSON document."""
    return [
        {"work": work.name, **asdict(work), "tokens_per_second": _plain(by)}
        for work, by in results.items()
    ]


def described(about: Mapping[str, Any]) -> str:
    """The head of a page in Markdown: what was measured, where and when, against which limits."""
    where = about["machine"]
    measured = "Tokens a second: median (lowest - highest)." if "weight_bytes" in about else ""
    lines = [
        f"# {about['kind']}: {about.get('shape') or about.get('model')}", "",
        f"{where['processor']}, {where['threads']} threads, {where['instructions']}; commit "
        f"{where['commit']}, {where['date']}. {measured}".rstrip(),
    ]  # fmt: skip
    if limits := about.get("limits"):
        lines.append(
            f"Limits: memory {limits['read_bytes'] / 1e9:.1f} GB/s, int8 "
            f"{limits['int8'] / 1e9:.0f}, bfloat16 {limits['bf16'] / 1e9:.0f} GMAC/s."
        )
        shares = about["shares_of_the_limit"].items()
        lines.append(
            "Shares of the limits around each: "
            + "; ".join(f"{n} {100 * s:.0f}%" for n, s in shares) + "."
        )  # fmt: skip
    return "\n".join(lines) + "\n"


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


def stages_table(found: Mapping[str, Any]) -> str:
    """Means over seeds with 95% intervals; what is measured by update as a table of its own."""
    lines = ["| | mean | 95% interval | seeds |", "|---|---|---|---|"]
    courses = []
    for name, value in _named(found, ""):
        if isinstance(value, list):
            heads = list(value[0])
            courses += ["", f"{name}:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            courses += [f"| {' | '.join(f'{one[key]:.4g}' for key in heads)} |" for one in value]
        elif isinstance(value, Mapping):
            values = ", ".join(f"{one:.4g}" for one in value["values"])
            half = value["half_width_95"]
            lines.append(f"| {name} | {value['mean']:.4g} | ± {half:.2g} | {values} |")
        else:
            lines.append(f"| {name} | {value:.4g} | | |")
    return "\n".join(lines + courses) + "\n"


def _named(found: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    """The measures of an experiment by their whole names."""
    for name, value in found.items():
        if isinstance(value, Mapping) and "values" not in value:
            yield from _named(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}", value


def outside_table(found: Sequence[Outside]) -> str:
    """Shares of the step in percent: median (lowest - highest)."""
    lines = ["| batch | a step, ms | outside the kernels |", "|---|---|---|"]
    lines += [
        f"| {one.batch} | {1e3 * one.step_seconds:.2f} | {100 * one.median:.1f}% "
        f"({100 * one.low:.1f} - {100 * one.high:.1f}) |"
        for one in found
    ]
    return "\n".join(lines) + "\n"


def http_table(found: OverHttp) -> str:
    """Milliseconds of a step, and the share outside of the kernels."""
    return (
        "| streams | a step over HTTP, ms | in the engine alone | in the kernels | outside |\n"
        "|---|---|---|---|---|\n"
        f"| {found.batch} | {1e3 * found.http_seconds:.2f} | {1e3 * found.engine_seconds:.2f} | "
        f"{1e3 * found.kernel_seconds:.2f} | {100 * found.outside:.1f}% |\n"
    )


def start_table(found: Mapping[str, Any]) -> str:
    """Seconds: median (lowest - highest); memory in MB of a million bytes."""

    def seconds(key: str) -> str:
        rate = found[key]
        return f"{rate['median']:.2f} ({rate['low']:.2f} - {rate['high']:.2f})"

    def size(count: int) -> str:
        return f"{count / 1e6:,.0f} MB"

    lines = [
        "| | |", "|---|---|",
        f"| process start to ready, s | {seconds('ready_seconds')} |",
        f"| process start to the first answer, s | {seconds('answer_seconds')} |",
        f"| packed file | {size(found['packed_bytes'])} |",
        f"| RssAnon when ready | {size(found['ready_bytes'])} |",
    ]  # fmt: skip
    if found["context"]:
        lines += [
            f"| keys and values of {found['context']:,} tokens | {size(found['kv_bytes'])} |",
            f"| RssAnon at most, filling the context | {size(found['most_bytes'])} |",
            f"| RssAnon + packed file, beyond packed weights + keys and values | "
            f"{size(found['beyond_bytes'])} |",
        ]
    return "\n".join(lines) + "\n"


def lasting_table(found: Lasting) -> str:
    """Seconds to the first token, and by what of the first turn's."""
    turns = {
        "read for the first time": found.first,
        "the next turn, in memory": found.second,
        "after a restart": found.restarted,
        "after a restart, files not in the page cache": found.restarted_cold,
    }
    lines = ["| | first token, s | of the first | tokens that were there |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {turn.seconds:.3f} | {100 * turn.seconds / found.first.seconds:.2f}% | "
        f"{turn.cached_tokens:,} of {turn.prompt_tokens:,} |"
        for name, turn in turns.items()
    ]
    size, seconds = found.written_bytes / 1e9, found.write_seconds
    lines += ["", f"Written: {size:.2f} GB in {seconds:.1f} s ({size / seconds:.1f} GB/s)."]
    return "\n".join(lines) + "\n"


def streaming_table(found: Streaming) -> str:
    """A tenth of the text a row."""
    lines = [
        "| tokens read | perplexity of the last tenth | pages in use | RssAnon |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {found.tokens * (number + 1) // len(found.tenths):,} | {one.perplexity:.4f} | "
        f"{one.pages} | {one.memory_bytes / 1e6:,.0f} MB |"
        for number, one in enumerate(found.tenths)
    ]
    rate = found.tokens / found.seconds
    lines += ["", f"Window of {found.window:,} positions; the last tenth's perplexity is "
              f"{100 * found.drift:+.2f}% of the first's; {rate:,.0f} tokens/s."]  # fmt: skip
    return "\n".join(lines) + "\n"


def sparse_table(found: SparseReading) -> str:
    """A depth a row, and the whole prompt."""
    lines = [
        "| tokens before | dense, s | sparse, s | times | pages seen |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {one.depth:,} | {one.dense_seconds:.2f} | {one.sparse_seconds:.2f} | "
        f"{one.dense_seconds / one.sparse_seconds:.2f} | {one.pages} |"
        for one in found.depths
    ]
    dense, sparse = found.dense_seconds, found.sparse_seconds
    lines.append(f"| all {found.tokens:,} | {dense:.0f} | {sparse:.0f} | {dense / sparse:.2f} | |")
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
