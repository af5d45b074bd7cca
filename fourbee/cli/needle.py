"""`fourbee bench needle`: whether long texts are read exactly, at every depth, and how fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fourbee.cli.options import Backend, KvType, Quantize

if TYPE_CHECKING:
    from fourbee.evaluation.needles import Found

_LENGTHS, _DEPTHS = (4096, 32_768), (0.0, 0.25, 0.5, 0.75, 1.0)


def needle(
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens, answer and all; may be repeated.")
    ] = None,
    depth: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Where a needle is, from 0 to 1; may be repeated."),
    ] = None,
    quantize: Quantize = "none",
    kv_type: KvType = "auto",
    backend: Backend = "auto",
    distractors: Annotated[int, typer.Option(min=0, help="Needles that nobody asks for.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Write the model to this folder, for `fourbee serve`, and stop."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for the table and the document.")
    ] = None,
) -> None:
    """Find needles in texts of hay with a model that cannot miss, so that a miss is an error.

    A Qwen3 of two layers, its weights set by hand, looks up what the text says of a name. Default:
    4,096 and 32,768 tokens, five depths. The last line of standard output is one JSON document.
    """
    from fourbee.benchmarks.report import described, machine
    from fourbee.evaluation.needles import measure, retrieval_llm
    from fourbee.evaluation.retrieval import write_retrieval_checkpoint

    if checkpoint is not None:
        typer.echo(write_retrieval_checkpoint(checkpoint))
        return
    lengths = length or _LENGTHS
    llm = retrieval_llm(max(lengths), quantize, kv_type, backend)
    console, found = Console(stderr=True, highlight=False), []
    for one in measure(llm, lengths, depth or _DEPTHS, seed, distractors):
        found.append(one)
        console.print(
            f"{one.length:,} tokens, depth {one.depth:g}: "
            f"{'exact' if one.exact else f'WRONG: {one.text!r}'}, {one.seconds:.2f} s",
            markup=False,
        )
    about = {
        "kind": "needle", "model": "retrieval checkpoint", "quantize": quantize,
        "kv_type": kv_type, "distractors": distractors, "seed": seed, "machine": machine(),
        "exact": all(one.exact for one in found), "results": [asdict(one) for one in found],
    }  # fmt: skip
    shown, document = table(found), json.dumps(about)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        name = f"needle-{quantize}-{kv_type}"
        (output / f"{name}.md").write_text(described(about) + "\n" + shown)
        (output / f"{name}.json").write_text(document + "\n")
    typer.echo(shown)
    typer.echo(document)


def table(found: Sequence[Found]) -> str:
    """A row a length: which depths were exact, and how fast the text was read."""
    depths = sorted({one.depth for one in found})
    heads = ["tokens", *(f"depth {depth:g}" for depth in depths), "read, s", "tokens/s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for length in dict.fromkeys(one.length for one in found):
        row = [one for one in found if one.length == length]
        exact = {one.depth: "exact" if one.exact else "**wrong**" for one in row}
        # The first question reads the text.
        seconds = row[0].seconds
        cells = [f"{length:,}", *(exact[depth] for depth in depths), f"{seconds:.1f}",
                 f"{length / seconds:,.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
