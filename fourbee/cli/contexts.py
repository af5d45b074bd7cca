"""`fourbee contexts`: what the context store has on disk, and how to be rid of it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fourbee.engine.context_store import ContextStore
    from fourbee.engine.store_upkeep import StoredContext

_DAMAGED = 3

contexts_app = typer.Typer(
    name="contexts",
    help="See, verify and prune what `fourbee serve` keeps of conversations and documents on disk.",
    no_args_is_help=True,
)

Store = Annotated[
    Path | None,
    typer.Option(
        "--context-store",
        metavar="DIR",
        help="The folder of the store. Default: ~/.cache/fourbee/contexts, or "
        "$FOURBEE_HOME/contexts.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


@contexts_app.command(name="list")
def list_contexts(context_store: Store = None, as_json: Json = False) -> None:
    """The named contexts, the last used first.

    PAGES: how many whole pages of 64 tokens are on disk, of all that the tokens fill; only those
    from the first token on count, since a page is of no use without those before it. SIZE: of these
    pages; contexts that begin alike share them.
    """
    with closing(_open(context_store)) as store:
        found = store.contexts()
        if as_json:
            typer.echo(json.dumps([asdict(context) for context in found], indent=2))
        elif found:
            _print_table(found)
        else:
            typer.echo(f"no named contexts in {store.folder}")


@contexts_app.command()
def info(
    context_id: Annotated[str, typer.Argument(help="The id.")],
    context_store: Store = None,
    as_json: Json = False,
) -> None:
    """All that is known of a context; of several, where several owners have one of this id."""
    from fourbee.foundation.errors import UsageError

    with closing(_open(context_store)) as store:
        found = store.info(context_id)
        if not found:
            raise UsageError(f"context {context_id!r}: not in {store.folder}")
        if as_json:
            typer.echo(json.dumps([asdict(context) for context in found], indent=2))
            return
        for context in found:
            for name, value in _described(context):
                typer.echo(f"{name:10} {value}")


@contexts_app.command()
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="What was not used for so long: 30d, 12h, 15m, 2w."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is of this owner; '' = of none.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="This context, its pages that no other named context begins with, and all that "
            "follows those or a page that is lost.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="The least recently used, until the store has this size: 5GB."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    context_store: Store = None,
    as_json: Json = False,
) -> None:
    """Remove what all of the given options name, and say what it was.

    At least one option is needed. A running server that uses the store loses nothing of what it has
    in memory, and may write that again.
    """
    from fourbee.foundation.errors import UsageError
    from fourbee.foundation.sizes import parse_size, parse_span, show_size

    given = [one for one in (older_than, namespace, context, to) if one is not None]
    if everything == bool(given):
        raise UsageError(
            "prune: expected --older-than, --namespace, --context or --to, or --all alone"
        )
    age = None if older_than is None else parse_span(older_than, "--older-than")
    size = 0 if to is None else parse_size(to, "--to")
    with closing(_open(context_store)) as store:
        gone = store.prune(older_than=age, namespace=namespace, context_id=context, to_bytes=size)
    if as_json:
        typer.echo(json.dumps(asdict(gone), indent=2))
    else:
        typer.echo(
            f"removed {_count(gone.contexts, 'context')} and {_count(gone.pages, 'page')}, "
            f"{show_size(gone.bytes)}"
        )


@contexts_app.command()
def verify(context_store: Store = None, as_json: Json = False) -> None:
    """Read every file and compare checksums. Damaged ones are removed, and the exit code is 3."""
    from fourbee.foundation.sizes import show_size

    with closing(_open(context_store)) as store:
        found = store.verify()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        for bad in found.bad:
            typer.echo(f"damaged, removed: {bad}")
        typer.echo(
            f"{_count(found.contexts, 'context')} and {_count(found.pages, 'page')} are whole, "
            f"{show_size(found.bytes)}; {len(found.bad)} damaged"
        )
    if found.bad:
        raise typer.Exit(_DAMAGED)


def _open(folder: Path | None) -> ContextStore:
    """The store, without a bound on its size: looking at it removes nothing."""
    from fourbee.engine.context_store import ContextStore, default_folder
    from fourbee.foundation.errors import UsageError

    if folder is not None and not folder.expanduser().exists():
        raise UsageError(f"--context-store {folder}: no such folder", "context_store")
    return ContextStore(folder or default_folder(), make=folder is None)


def _print_table(contexts: list[StoredContext]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fourbee.foundation.sizes import show_size

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (("ID", "left"), ("NAMESPACE", "left"), ("TOKENS", "right"),
                          ("PAGES", "right"), ("SIZE", "right"), ("LAST USE", "left")):  # fmt: skip
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for one in contexts:
        cells = (
            _printable(one.context_id), _printable(one.namespace) or "-", str(one.tokens),
            f"{one.pages}/{one.pages_of_all}", show_size(one.bytes), _when(one.last_use),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    # As wide as it is: a line that is cut would hide the very id that was looked for.
    Console(width=10_000, soft_wrap=True).print(table)


def _described(context: StoredContext) -> list[tuple[str, Any]]:
    from fourbee.foundation.sizes import show_size

    return [
        ("context", _printable(context.context_id)),
        ("namespace", _printable(context.namespace) or "-"),
        ("tokens", context.tokens),
        ("pages", f"{context.pages} of {context.pages_of_all} on disk"),
        ("size", show_size(context.bytes)),
        ("last use", _when(context.last_use)),
        ("recipe", context.recipe),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _printable(text: str) -> str:
    """What a client called it, without what would steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
