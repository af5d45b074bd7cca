"""`fourbee export`: a model as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fourbee.engine.sampling import SamplingDefaults


def export(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, a GGUF file, or the id of a pulled model.")
    ],
    output: Annotated[Path, typer.Argument(help="A new file that ends in .gguf.")],
    form: Annotated[
        str,
        typer.Option(
            "--type",
            help="Of the matrices: f32, f16, bf16, q8_0 (8.5 bits a weight) or q4_0 (4.5; "
            "embedding and head q8_0). Norms are f32 in all of them.",
        ),
    ] = "q8_0",
) -> None:
    """Write a model as a GGUF file, which llama.cpp runs. `--model OUTPUT` uses it too.

    The last line of standard output is one JSON document: the file's size, its types, and whether
    llama.cpp cuts text into tokens as the model's tokenizer does.
    """
    from fourbee.cli.quantize import progress_bar
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.model.gguf_checkpoint import sampling_metadata
    from fourbee.model.gguf_export import check_request, export_gguf
    from fourbee.model.hub import resolve_model
    from fourbee.text.gguf_vocabulary import cuts_like_qwen, vocabulary_metadata

    target = output.expanduser().resolve()
    check_request(target, form)  # before the tokenizer is read
    source = resolve_model(model).resolve()
    checkpoint = open_checkpoint(source)
    tokenizer = checkpoint.tokenizer
    about: dict[str, Any] = {
        "general.name": source.stem if source.is_file() else source.name,
        **sampling_metadata(_recommended(checkpoint.defaults)),
        **vocabulary_metadata(tokenizer, checkpoint.config.vocab_size),
    }
    same = cuts_like_qwen(tokenizer)
    with progress_bar(str(output)) as show:
        summary = export_gguf(source, target, form, about, show)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not same:
        console.print(
            "warning: llama.cpp cuts text otherwise than this model's tokenizer (it has no name "
            "for the rule; qwen2 is written): its tokens, and so its answers, can differ; fourbee "
            "reads the file with the model's own rule",
            markup=False,
        )
    console.print(
        f"{output}: {summary.bytes_after / 1e6:.1f} MB, {summary.tensors} tensors, matrices "
        f"{summary.matrix_type}, embedding and head {summary.table_type}, norms f32",
        markup=False,
    )
    typer.echo(json.dumps({"model": model, "output": str(output), **asdict(summary),
                           "tokens_as_in_llama_cpp": same}))  # fmt: skip


def _recommended(defaults: SamplingDefaults) -> dict[str, Any]:
    """What the model's makers recommend, where it is not what holds without them."""
    return {
        field.name: getattr(defaults, field.name)
        for field in fields(defaults)
        if field.name != "eos_token_ids" and getattr(defaults, field.name) != field.default
    }
