"""`fourbee quantize`: a model packed into few bits, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fourbee.foundation.errors import UsageError

if TYPE_CHECKING:
    from fourbee.model.packed_format import PackedFormat


def quantize(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, a GGUF file, or the id of a pulled model.")
    ],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    bits: Annotated[
        int,
        typer.Option(
            help="4: a quarter of bfloat16, a small loss. 8: half, hardly any. 16: bfloat16 itself."
        ),
    ] = 4,
    group: Annotated[
        int,
        typer.Option(help="Weights that share a scale: 32 (closest), 64 or 128 (smallest)."),
    ] = 64,
    method: Annotated[
        Literal["hadamard", "search", "plain", "gptq", "gptq-plain"] | None,
        typer.Option(
            help="Of 4 bits. hadamard: spread outliers first, then search the best scales; "
            "search: the search alone, for widths that are no multiple of 128; plain: largest "
            "weight to largest number; gptq: hadamard, rounded so that outputs on the calibration "
            "texts come closest; gptq-plain: the same on search. Default: hadamard."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For gptq: a .jsonl of samples as training reads them, or a .txt; about 16,000 "
            "tokens of it are used."
        ),
    ] = None,
) -> None:
    """Pack a model into few bits. `--model OUTPUT` then uses it.

    The last line of standard output is one JSON document: sizes, bits a weight with its scales,
    and how far the packed matrices are from the model's (0.1 = a tenth of their size).
    """
    from fourbee.model.hub import resolve_model
    from fourbee.model.quantize import quantize_model

    form = _form(bits, group, method)
    _check_calibration(form, calibration)
    source = resolve_model(model)
    sequences = [] if calibration is None else _sequences(calibration, source)
    with progress_bar(str(output)) as show:
        summary = quantize_model(source, output, form, show, sequences)
    before, after = summary.bytes_before / 1e6, summary.bytes_after / 1e6
    Console(stderr=True, highlight=False).print(
        f"{before:.1f} MB -> {after:.1f} MB, {summary.bits_per_weight:.2f} bits a weight, "
        f"relative error {summary.mean_error:.4f} (worst {summary.worst_error:.4f}, "
        f"{summary.worst_matrix})",
        markup=False,
    )
    typer.echo(json.dumps({"model": model, "output": str(output), **form.to_json(),
                           **asdict(summary)}))  # fmt: skip


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for as long as it is open; what it gives takes a name and bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TimeRemainingColumn())  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(label, total=None)

    def show(name: str, done: int, total: int) -> None:
        bar.start()  # only now: an error before the first tensor is one line alone
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:  # stopping alone would print an empty line
            bar.stop()


def _check_calibration(form: PackedFormat, calibration: Path | None) -> None:
    if form.method == "gptq" and calibration is None:
        raise UsageError(
            "--method gptq: needs texts like those that the model will see: --calibration FILE, "
            "a .jsonl of samples or a .txt", "calibration"
        )  # fmt: skip
    if form.method != "gptq" and calibration is not None:
        raise UsageError(f"--calibration {calibration}: for --method gptq only", "calibration")


def _sequences(calibration: Path, source: Path) -> list[list[int]]:
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.model.calibrated import MOST_TOKENS
    from fourbee.training.calibration import calibration_sequences

    return calibration_sequences(calibration, open_checkpoint(source).tokenizer, MOST_TOKENS)


def _form(bits: int, group: int, method: str | None) -> PackedFormat:
    from fourbee.kernels.packed import GROUPS
    from fourbee.model.packed_format import PackedFormat
    from fourbee.model.quantize import FORMATS

    if group not in GROUPS:
        raise UsageError(f"--group {group}: expected 32, 64 or 128", "group")
    if bits == 4:
        # GPTQ writes symmetric int4; a row's scales may be too far apart where it is not rotated.
        symmetric = PackedFormat("int4", tables="int8")
        forms = {
            "hadamard": FORMATS["int4"],
            "search": replace(symmetric, method="search"),
            "plain": symmetric,
            "gptq": replace(symmetric, rotated=True, method="gptq"),
            "gptq-plain": replace(symmetric, method="gptq"),
        }
        return replace(forms[method or "hadamard"], group=group)
    if bits not in (8, 16):
        raise UsageError(f"--bits {bits}: expected 4, 8 or 16", "bits")
    if method not in (None, "plain"):
        raise UsageError(f"--method {method}: for --bits 4 only; leave it out", "method")
    return PackedFormat("int8", group) if bits == 8 else PackedFormat("bf16")
