"""`fourbee eval`: how many samples a model answers rightly, skill by skill, with intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fourbee.cli.options import Backend, Model, Quantize


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="JSON lines of samples with expectations.")],
    model: Model = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each skill.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 = greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the first sample.")] = 0,
    wrong: Annotated[int, typer.Option(min=0, help="Show this many wrong answers a skill.")] = 0,
    backend: Backend = "auto",
    quantize: Quantize = "none",
) -> None:
    """Score a model on samples. The last line of standard output is one JSON document."""
    from fourbee.cli.talk import load
    from fourbee.evaluation.samples import answer, read_samples, shares

    per_file = {path: read_samples(path, limit) for path in files}
    llm = load(model, backend, quantize)
    console, document = Console(stderr=True, highlight=False), {}
    for path, samples in per_file.items():
        drawn = answer(llm, samples, temperature, seed)
        answers = list(track(drawn, path.name, len(samples), console=console))
        table = Table("skill", "right", "95% interval", "n", title=path.name)
        found = shares(answers)
        for skill, share in found.items():
            interval = f"{share.low:.1%} - {share.high:.1%}"
            table.add_row(skill, f"{share.value:.1%}", interval, str(share.total))
        console.print(table)
        document[str(path)] = {skill: asdict(share) for skill, share in found.items()}
        seen: dict[str, int] = {}
        for one in answers:
            skill = str(one.sample.get("skill", "all"))
            if not one.right and seen.setdefault(skill, 0) < wrong:
                seen[skill] += 1
                asked = one.sample.get("prompt") or one.sample["messages"]
                console.print(f"[{skill}] {asked!r} -> {one.text!r}", markup=False)
    typer.echo(json.dumps({"model": model or "fourbee-mini", "temperature": temperature,
                           "files": document}))  # fmt: skip
