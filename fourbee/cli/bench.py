"""`fourbee bench`: how fast this machine runs a model, alone and beside other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    from fourbee.benchmarks.work import Rate, System, Work

bench_app = typer.Typer(
    name="bench", help="Measure speed: alone, beside peers, against the machine.",
    no_args_is_help=True,
)  # fmt: skip

_WORKS = ["prefill:1024", "prefill:4096", "decode:1", "decode:1@4096", "decode:4", "decode:8",
          "decode:16"]  # fmt: skip
_SHORT = ["prefill:512", "decode:1", "decode:8"]

Shape = Annotated[
    str, typer.Option(help="Random weights of a published shape: 0.6B, 1.7B, 4B, 8B or tiny.")
]
Works = Annotated[
    list[str] | None,
    typer.Option("--work", help="prefill:TOKENS[@DEPTH] or decode:BATCH[@DEPTH]; may be repeated."),
]
Threads = Annotated[int | None, typer.Option(help="Threads of each system; default: all cores.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")]
Output = Annotated[
    Path | None, typer.Option(help="A folder for the table, the plot and the document.")
]
Quantize = Annotated[Literal["none", "int8", "int4"], typer.Option(help="How weights are packed.")]


@bench_app.command()
def offline(
    model: Annotated[
        str | None, typer.Option(help="A checkpoint, GGUF file or id; default: fourbee-mini.")
    ] = None,
    shape: Shape = "",
    quantize: Quantize = "none",
    work: Works = None,
    threads: Threads = None,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Prefill and decode rates of fourbee: a model, or random weights of a shape (`--shape`).

    The last line of standard output is one JSON document.
    """
    if shape:
        from fourbee.benchmarks.shapes import shape_config

        shape_config(shape)
        quantize = "int4" if quantize == "none" else quantize
    command = _ours(shape, model, quantize, threads)
    about = {"kind": "offline", "model": model or shape or "fourbee-mini", "quantize": quantize}
    _run({"fourbee": command}, work or _SHORT, rounds, output, about)


@bench_app.command()
def peers(
    shape: Shape = "0.6B",
    work: Works = None,
    threads: Threads = None,
    rounds: Rounds = 3,
    output: Output = None,
    peers_python: Annotated[
        str, typer.Option(help="The Python that has llama_cpp and gguf; default: this one.")
    ] = sys.executable,
) -> None:
    """fourbee beside llama.cpp, in turn, in one run: random weights of one shape, four bits each.

    llama.cpp runs through llama-cpp-python (`pip install 'fourbee[peers]'`), with Q4_0 weights,
    flash attention and its own float16 keys and values. No system keeps prefixes.
    """
    import json
    import subprocess

    from fourbee.benchmarks import peer_llama
    from fourbee.benchmarks.shapes import SHAPES, VOCABULARY, shape_config
    from fourbee.foundation.errors import UsageError

    shape_config(shape)
    found = subprocess.run(
        [peers_python, "-c", "import llama_cpp, gguf; print(llama_cpp.__version__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise UsageError(
            f"peers-python = {peers_python!r}: has no llama_cpp and gguf: "
            "pip install 'fourbee[peers]' there", "peers-python"
        )  # fmt: skip
    layers, hidden, inner, heads, kv_heads, tied = SHAPES[shape]
    described = json.dumps(
        {"layers": layers, "hidden": hidden, "inner": inner, "heads": heads, "tied": tied,
         "kv_heads": kv_heads, "vocabulary": VOCABULARY}
    )  # fmt: skip
    count = threads or _cores()
    commands = {
        "fourbee int4": _ours(shape, None, "int4", count),
        "llama.cpp Q4_0": [peers_python, str(peer_llama.__file__), described, str(count)],
    }
    about = {"kind": "peers", "shape": shape, "llama_cpp_python": found.stdout.strip()}
    _run(commands, work or _WORKS, rounds, output, about)


@bench_app.command()
def roofline(
    shape: Shape = "0.6B",
    work: Works = None,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """The machine's limits (memory, int8, bfloat16), and the share that each work reaches."""
    from fourbee.benchmarks.roofline import limits, share_of_limit

    most = limits()
    Console(stderr=True, highlight=False).print(
        f"memory {most.read_bytes / 1e9:.1f} GB/s, int8 {most.int8 / 1e9:.0f} and bfloat16 "
        f"{most.bf16 / 1e9:.0f} GMAC/s"
    )

    def shares(systems: Sequence[System], results: dict[Work, dict[str, Rate]]) -> dict[str, Any]:
        size = systems[0].about["weight_bytes"]
        return {
            "shares_of_the_limit": {
                one.name: round(share_of_limit(one, shape, size, rate["fourbee"].median, most), 3)
                for one, rate in results.items()
            }
        }

    about = {
        "kind": "roofline", "shape": shape, "quantize": "int4",
        "limits": {"read_bytes": most.read_bytes, "int8": most.int8, "bf16": most.bf16},
    }  # fmt: skip
    command = _ours(shape, None, "int4", None)
    _run({"fourbee": command}, work or _WORKS, rounds, output, about, shares)


def _ours(shape: str, model: str | None, quantize: str, threads: int | None) -> list[str]:
    command = [sys.executable, "-m", "fourbee.benchmarks.worker", "--quantize", quantize]
    if shape:
        command += ["--shape", shape]
    elif model:
        command += ["--model", model]
    return [*command, "--threads", str(threads or _cores())]


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _run(
    commands: dict[str, list[str]], works: list[str], rounds: int, output: Path | None,
    about: dict[str, Any], more: Any = None,
) -> None:  # fmt: skip
    """Measures, prints the table and the document, and writes what `output` asks for."""
    from fourbee.benchmarks.report import document, plot, table
    from fourbee.benchmarks.work import Work, measure, running

    console = Console(stderr=True, highlight=False)
    parsed = [Work.parse(text) for text in works]
    results: dict[Work, dict[str, Rate]] = {}
    with running(commands) as systems:
        about["weight_bytes"] = {one.name: one.about["weight_bytes"] for one in systems}
        for one in track(parsed, "measuring", console=console, transient=True):
            results[one] = measure(systems, one, rounds)
            rates = ", ".join(f"{n} {r.median:,.1f}" for n, r in results[one].items())
            console.print(f"{one.name}: {rates} tokens/s")
        if more:
            about |= more(systems, results)
    text = document(about, results)
    name = "-".join(str(about[key]) for key in ("kind", "shape", "model") if about.get(key))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.json").write_text(text + "\n")
        (output / f"{name}.md").write_text(_described(text) + "\n" + table(results))
        if not plot(results, name, output / f"{name}.png"):
            console.print("no plot: matplotlib is not installed (pip install 'fourbee[peers]')")
    typer.echo(table(results))
    typer.echo(text)


def _described(text: str) -> str:
    import json

    about = json.loads(text)
    where = about["machine"]
    lines = [
        f"# {about['kind']}: {about.get('shape') or about.get('model')}", "",
        f"{where['processor']}, {where['threads']} threads, {where['instructions']}; commit "
        f"{where['commit']}, {where['date']}. Tokens a second: median (lowest - highest).",
    ]  # fmt: skip
    if limits := about.get("limits"):
        lines.append(
            f"Limits: memory {limits['read_bytes'] / 1e9:.1f} GB/s, int8 "
            f"{limits['int8'] / 1e9:.0f}, bfloat16 {limits['bf16'] / 1e9:.0f} GMAC/s."
        )
        shares = about["shares_of_the_limit"].items()
        lines.append("Shares: " + "; ".join(f"{n} {100 * s:.0f}%" for n, s in shares) + ".")
    return "\n".join(lines) + "\n"
