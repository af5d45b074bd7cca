"""`fourbee bench`: how fast this machine runs a model, alone and beside other programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track

from fourbee.cli.bench_training import shakespeare, stages, training
from fourbee.cli.needle import needle
from fourbee.cli.options import Model
from fourbee.cli.quality import quality

if TYPE_CHECKING:
    from fourbee.benchmarks.report import Results
    from fourbee.benchmarks.work import Rate, System, Work

bench_app = typer.Typer(
    name="bench",
    help="Measure speed (alone, beside peers, against the machine), what few bits cost, and long "
    "texts.",
    no_args_is_help=True,
)
bench_app.command()(quality)
bench_app.command()(needle)
bench_app.command()(stages)
bench_app.command()(shakespeare)
bench_app.command()(training)

_WORKS = ["prefill:1024", "prefill:4096", "prefill:1024@4096", "decode:1", "decode:1@4096",
          "decode:1@16384", "decode:4", "decode:8", "decode:16"]  # fmt: skip
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
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of each system; default: all cores.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")]
Output = Annotated[
    Path | None, typer.Option(help="A folder for the table, the plot and the document.")
]
Quantize = Annotated[
    Literal["none", "int8", "int4"] | None,
    typer.Option(
        help="How weights are packed; default: as the model has them, int4 with --shape. Those of "
        "a shape are in bfloat16 with none."
    ),
]


@bench_app.command()
def offline(
    model: Annotated[
        str | None, typer.Option(help="A checkpoint, GGUF file or id; default: fourbee-mini.")
    ] = None,
    shape: Shape = "",
    quantize: Quantize = None,
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
        from fourbee.foundation.errors import UsageError

        if model is not None:
            raise UsageError(
                f"--model {model} and --shape {shape}: expected one of them: a model, or random "
                "weights of a shape", "shape"
            )  # fmt: skip
        shape_config(shape)
    quantize = quantize or ("int4" if shape else "none")
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
        str,
        typer.Option(
            help="The Python that has llama_cpp or openvino; default: this one.",
            show_default=False,
        ),
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
    count = threads or len(os.sched_getaffinity(0))
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
    """The machine's limits (memory, int8, bfloat16), and the share that each work reaches.

    Limits are measured before and after each round, as a shared machine is not as fast at all
    times: a share is of the best that was found around the rounds of its work.
    """
    from collections import defaultdict
    from dataclasses import asdict

    from fourbee.benchmarks.roofline import Limits, best, limits, share_of_limit

    taken: dict[Work, list[Limits]] = defaultdict(list)

    def shares(systems: Sequence[System], results: Results) -> dict[str, Any]:
        size = systems[0].about["weight_bytes"]
        around = {one: best(*taken[one]) for one in results}
        return {
            "limits": asdict(best(*around.values())),
            "limits_around": {one.name: asdict(most) for one, most in around.items()},
            "shares_of_the_limit": {
                one.name: round(share_of_limit(one, shape, size, by["fourbee"].median, most), 3)
                for (one, by), most in zip(results.items(), around.values(), strict=True)
            },
        }

    about = {"kind": "roofline", "shape": shape, "quantize": "int4"}
    command = _ours(shape, None, "int4", None)
    _run({"fourbee": command}, work or _WORKS, rounds, output, about, shares,
         between=lambda one: taken[one].append(limits()))  # fmt: skip


@bench_app.command()
def outside(
    shape: Shape = "0.6B",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=1024, help="May be repeated.")
    ] = None,
    threads: Threads = None,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """The share of a decoding step outside the native kernels, through the whole of `LLM`.

    Sampled with the temperature, top-k and top-p that Qwen3 recommends. Default: batches of 1, 8.
    """
    from dataclasses import asdict

    from fourbee.benchmarks.outside import measure_outside, random_llm
    from fourbee.benchmarks.report import outside_table

    llm = random_llm(shape, threads)
    found = [measure_outside(llm, one, rounds) for one in batch or (1, 8)]
    about = {"kind": "outside", "shape": shape, "quantize": "int4"}
    _tell(about | {"results": [asdict(one) for one in found]}, outside_table(found), output)


@bench_app.command()
def http(
    shape: Shape = "0.6B",
    batch: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 8,
    threads: Threads = None,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """A decoding step as several clients of a server see it, beside the kernels alone."""
    from dataclasses import asdict

    from fourbee.benchmarks.over_http import measure_over_http
    from fourbee.benchmarks.report import http_table

    found = measure_over_http(shape, batch, rounds, threads)
    about = {"kind": "http", "shape": shape, "quantize": "int4", "outside": found.outside}
    _tell(about | asdict(found), http_table(found), output)


@bench_app.command()
def start(
    shape: Shape = "4B",
    context: Annotated[
        int, typer.Option(min=0, max=262_144, help="Positions to fill; 0 leaves it out.")
    ] = 4096,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """From `fourbee serve`'s start to ready with a packed file, and the memory that it takes.

    The file has random weights in int4, made on the spot in the folder for temporary files. A round
    to warm the page cache; then rounds of a start and an answer of one token, and in the first of
    them a prompt that fills the context.
    """
    from fourbee.benchmarks.report import start_table
    from fourbee.benchmarks.start import measure_starts

    found = measure_starts(shape, context, rounds)
    _tell({"kind": "start", "shape": shape, "quantize": "int4"} | found, start_table(found), output)


@bench_app.command()
def lasting(
    shape: Shape = "0.6B",
    tokens: Annotated[int, typer.Option(min=64, help="Of the text that is read.")] = 4096,
    threads: Threads = None,
    output: Output = None,
) -> None:
    """Seconds to the first token: a text read, its next turn, and both after a restart.

    Random weights in int4, keys and values in int8, a context store in the folder for temporary
    files.
    """
    from dataclasses import asdict

    from fourbee.benchmarks.lasting import measure_lasting
    from fourbee.benchmarks.report import lasting_table

    console = Console(stderr=True, highlight=False)
    found = measure_lasting(shape, tokens, threads, console.print)
    about = {"kind": "lasting", "shape": shape, "tokens": tokens, "quantize": "int4"}
    _tell(about | asdict(found), lasting_table(found), output)


@bench_app.command()
def sparse(
    shape: Shape = "0.6B",
    tokens: Annotated[int, typer.Option(min=4096, help="Of the prompt.")] = 65_536,
    rounds: Rounds = 2,
    threads: Threads = None,
    output: Output = None,
) -> None:
    """Reading a long prompt dense and block-sparse (`attention`: "sparse"), in turn."""
    from dataclasses import asdict

    from fourbee.benchmarks.report import sparse_table
    from fourbee.benchmarks.sparse import measure_sparse

    console = Console(stderr=True, highlight=False)
    found = measure_sparse(shape, tokens, rounds, threads, console.print)
    about = {"kind": "sparse", "shape": shape, "quantize": "int4"}
    _tell(about | asdict(found), sparse_table(found), output)


@bench_app.command()
def streaming(
    model: Model = None,
    tokens: Annotated[int, typer.Option(min=10_000, help="Of the text.")] = 1_000_000,
    window: Annotated[int, typer.Option(min=64, help="Positions that a row sees.")] = 4096,
    output: Output = None,
) -> None:
    """A text without end through a window: perplexity and memory, a tenth after the other.

    The text is generated samples of fourbee-mini's kind that training does not see, ten times.
    """
    from dataclasses import asdict

    from fourbee.benchmarks.report import streaming_table
    from fourbee.benchmarks.streaming import measure_streaming

    console = Console(stderr=True, highlight=False)
    found = measure_streaming(model, tokens, window, console.print)
    about = {"kind": "streaming", "model": model or "fourbee-mini", "drift": found.drift}
    _tell(about | asdict(found), streaming_table(found), output)


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
    return [*command, "--threads", str(threads)] if threads else command


def _run(
    commands: dict[str, list[str]], works: list[str], rounds: int, output: Path | None,
    about: dict[str, Any], more: Any = None, between: Any = lambda work: None,
) -> None:  # fmt: skip
    """Measures and tells; `between` is called around rounds, `more` says more in the end.

    When a system ends in the middle, what was measured before is told all the same.
    """
    from fourbee.benchmarks.report import plot, rows, table
    from fourbee.benchmarks.work import Work, measure, running

    console = Console(stderr=True, highlight=False)
    parsed = [Work.parse(text) for text in works]
    results: dict[Work, dict[str, Rate]] = {}
    with running(commands) as systems:
        about["weight_bytes"] = {one.name: one.about["weight_bytes"] for one in systems}
        try:
            for one in track(parsed, "measuring", console=console, transient=True):
                results[one] = measure(systems, one, rounds, between)
                rates = ", ".join(f"{n} {r.median:,.1f}" for n, r in results[one].items())
                console.print(f"{one.name}: {rates} tokens/s")
        finally:
            if results:
                about |= more(systems, results) if more else {}
                name = _tell(about | {"results": rows(results)}, table(results), output)
                if output and not plot(results, name, output / f"{name}.png"):
                    console.print(
                        "no plot: matplotlib is not installed (pip install 'fourbee[peers]')"
                    )


def _tell(about: dict[str, Any], table: str, output: Path | None) -> str:
    """Prints the table and the document, and writes them where asked; the files' name."""
    import json

    from fourbee.benchmarks.report import described, machine

    about["machine"] = machine()
    named = (about.get(key) for key in ("kind", "shape", "model"))
    name = "-".join(Path(one).name for one in named if one)  # a model may be a path
    text = json.dumps(about)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.json").write_text(text + "\n")
        (output / f"{name}.md").write_text(described(about) + "\n" + table)
    typer.echo(table)
    typer.echo(text)
    return name
