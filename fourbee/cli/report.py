"""`fourbee report`: the curves of one or more training runs as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of training runs.")],
    output: Annotated[
        Path | None, typer.Option(help="The file; default: report.html in the first folder.")
    ] = None,
) -> None:
    """Write curves, samples and recipes of training runs, unfinished ones too, as one HTML file."""
    from fourbee.training.report import write_report

    typer.echo(write_report(runs, output or runs[0] / "report.html"))
