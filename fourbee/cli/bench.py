"""`fourbee bench`: how fast this machine runs a model, alone and beside other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track

from fourbee.cli.quality import quality

if TYPE_CHECKING:
    from fourbee.benchmarks.work import Rate, System, Work

bench_app = typer.Typer(
    name="bench",
    help="Measure speed (alone, beside peers, against the machine) and what few bits cost.",
    no_args_is_help=True,
)
bench_app.command()(quality)

_WORKS = ["prefill:1024", "prefill:4096", "decode:1", "decode:1@4096", "decode:4", "decode:8",
          "decode:16"]  # fmt: skip
_SHORT = ["prefill:512", "decode:1", "decode:8"]

_PEERS = (("llama.cpp Q4_0", "llama_cpp", "peer_llama.py"),
          ("OpenVINO u4", "openvino", "peer_openvino.py"))  # fmt: skip

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
        str, typer.Option(help="The Python that has llama_cpp or openvino; default: this one.")
    ] = sys.executable,
) -> None:
    """fourbee beside llama.cpp and OpenVINO, in turn, in one run: one shape, four bits each.

    Weights are random. llama.cpp runs through llama-cpp-python with Q4_0, flash attention and its
    own float16 keys and values; OpenVINO's CPU plugin with u4 in groups of 64, u8 keys and values
    (`pip install 'fourbee[peers]'`). What is not installed is left out. No system keeps prefixes.
    """
    import json

    from fourbee.benchmarks import work as benchmarks
    from fourbee.benchmarks.shapes import SHAPES, VOCABULARY, shape_config
    from fourbee.foundation.errors import UsageError

    shape_config(shape)
    layers, hidden, inner, heads, kv_heads, tied = SHAPES[shape]
    described = json.dumps(
        {"layers": layers, "hidden": hidden, "inner": inner, "heads": heads, "tied": tied,
         "kv_heads": kv_heads, "vocabulary": VOCABULARY}
    )  # fmt: skip
    count = threads or _cores()
    commands = {"fourbee int4": _ours(shape, None, "int4", count)}
    versions: dict[str, str] = {}
    for name, module, script in _PEERS:
        if version := _version(peers_python, module):
            versions[module] = version
            program = str(Path(benchmarks.__file__).parent / script)
            commands[name] = [peers_python, program, described, str(count)]
    if not versions:
        raise UsageError(
            f"peers-python = {peers_python!r}: has no llama_cpp and no openvino: "
            "pip install 'fourbee[peers]' there", "peers-python"
        )  # fmt: skip
    about = {"kind": "peers", "shape": shape, "versions": versions}
    _run(commands, work or _WORKS, rounds, output, about)


@bench_app.command()
def roofline(
    shape: Shape = "0.6B",
    work: Works = None,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """The machine's limits (memory, int8, bfloat16), and the share that each work reaches."""
    from dataclasses import asdict

    from fourbee.benchmarks.roofline import best, limits, share_of_limit

    first = limits()
    Console(stderr=True, highlight=False).print(
        f"memory {first.read_bytes / 1e9:.1f} GB/s, int8 {first.int8 / 1e9:.0f} and bfloat16 "
        f"{first.bf16 / 1e9:.0f} GMAC/s"
    )

    def shares(systems: Sequence[System], results: dict[Work, dict[str, Rate]]) -> dict[str, Any]:
        # A shared machine is not as fast at all times: the better of before and after.
        most = best(first, limits())
        size = systems[0].about["weight_bytes"]
        return {
            "limits": asdict(most),
            "shares_of_the_limit": {
                one.name: round(share_of_limit(one, shape, size, rate["fourbee"].median, most), 3)
                for one, rate in results.items()
            },
        }

    about = {"kind": "roofline", "shape": shape, "quantize": "int4"}
    command = _ours(shape, None, "int4", None)
    _run({"fourbee": command}, work or _WORKS, rounds, output, about, shares)


def _version(python: str, module: str) -> str:
    """The version of a module in another Python; nothing when it is not there."""
    import subprocess

    code = f"import {module}; print({module}.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


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
