"""`fourbee serve` and `fourbee pull`: a model on a port, and a model on the disk."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fourbee.cli.options import (
    Backend,
    ContextStore,
    ContextStoreSize,
    KvType,
    MaxContext,
    Model,
    Quantize,
)

LEAST_STORE_BYTES = 100_000_000


def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Clients must send this as a bearer token; may be given more than once. "
            "Also FOURBEE_API_KEY."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    backend: Backend = "auto",
    quantize: Quantize = "none",
    kv_type: KvType = "auto",
    max_context: MaxContext = "auto",
    context_store: ContextStore = None,
    context_store_size: ContextStoreSize = None,
) -> None:
    """Serve a model: a chat page at /, OpenAI's API at /v1."""
    from fourbee.model.hub import resolve_model
    from fourbee.server.serve import ServeSettings
    from fourbee.server.serve import serve as run

    # What is no model ends here, before anybody can connect.
    resolve_model(model)
    # Not typer's `envvar`: help would then print the key's value as a default.
    keys = api_key or [key for key in [os.environ.get("FOURBEE_API_KEY")] if key]
    run(
        ServeSettings(
            model=model,
            device=device,
            dtype=dtype,
            backend=backend,
            quantize=quantize,
            kv_type=kv_type,
            max_context=_tokens(max_context),
            context_store=None if context_store is None else str(context_store.absolute()),
            context_store_bytes=_store_bytes(context_store_size, context_store is not None),
            host=host,
            port=port,
            api_keys=tuple(keys),
        )
    )


def _store_bytes(text: str | None, is_kept: bool) -> int:
    """`--context-store-size` in bytes; UsageError for a store that holds nothing."""
    from fourbee.foundation.errors import UsageError
    from fourbee.foundation.sizes import parse_size

    if text is not None and not is_kept:
        raise UsageError("--context-store-size: expected only with --context-store", "size")
    size = parse_size(text or "20GB", "--context-store-size")
    if size < LEAST_STORE_BYTES:
        raise UsageError(
            f"--context-store-size {text}: expected at least 100MB, some pages of a model", "size"
        )
    return size


def _tokens(text: str) -> int | None:
    """`--max-context` as a number; None for auto."""
    from fourbee.foundation.errors import UsageError

    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 64 <= int(text[:12]) < 10**9):
        raise UsageError(
            f"--max-context {text}: expected auto or a number from 64 on", "max_context"
        )
    return int(text)


def pull(
    model_id: Annotated[str, typer.Argument(help="A hub id, such as Qwen/Qwen3-0.6B.")],
    revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "main",
) -> None:
    """Download a model once; `--model ID` uses it from then on. Goes on where it was stopped."""
    from fourbee.model.hub import pull as run

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(model_id, total=None)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        folder = run(model_id, revision, show)
    typer.echo(folder)
