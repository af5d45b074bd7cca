"""`fourbee tokens`: ids and pieces of a text, or of a conversation with what training learns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fourbee.cli.options import Format, Model
from fourbee.foundation.errors import UsageError

if TYPE_CHECKING:
    from fourbee.text.tokenizer import Tokenizer
    from fourbee.training.samples import Document
    from fourbee.training.sources import Source


def tokens(
    text: Annotated[str | None, typer.Argument(help="The text to cut into tokens.")] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines of {"messages": [...], "tools": [...]} or another form of training '
            "samples: shows the loss mask, of a preference pair both sides."
        ),
    ] = None,
    format: Format = "auto",
    line: Annotated[int, typer.Option(min=1, help="Which line of the conversation file.")] = 1,
    control: Annotated[
        bool, typer.Option("--control", help="Read <|im_start|> and the like as control tokens.")
    ] = False,
    model: Model = None,
) -> None:
    """Show the tokens of a text, or of a conversation: what is learned stands out in green."""
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.model.hub import resolve_model
    from fourbee.training.sources import Source

    if (text is None) == (conversation is None):
        raise UsageError('expected either a text, as in fourbee tokens "Hello", or --conversation')
    tokenizer = open_checkpoint(resolve_model(model)).tokenizer
    if text is not None:
        ids = tokenizer.encode(text, control_tokens=control)
        documents: Sequence[Document] = [(ids, [False] * len(ids))]
    else:
        assert conversation is not None
        documents = _documents(tokenizer, Source(conversation, format=format), line)
    console = Console(highlight=False)
    for ids, learned in documents:
        console.print(pieces(tokenizer, ids, learned, console.color_system is not None))
        console.print(" ".join(str(token_id) for token_id in ids), style="dim", soft_wrap=True)
        summary = f"{len(ids)} tokens" + (f", {sum(learned)} learned" if any(learned) else "")
        console.print(summary, style="bold")


def _documents(tokenizer: Tokenizer, source: Source, line: int) -> Sequence[Document]:
    """The sample at that place of the file: one document, or both of a preference pair."""
    from fourbee.text.chat_format import ChatFormat
    from fourbee.training.inspection import encode_by_form
    from fourbee.training.sources import each_sample, read_raw

    chat = ChatFormat(tokenizer)
    chosen = islice(read_raw(source), line - 1, line)
    for _, made in each_sample(source, chosen, lambda one: encode_by_form(one, tokenizer, chat)):
        assert made is not None  # a bad one is refused
        return made.documents
    raise UsageError(f"--line {line}: {source.path} has fewer lines")


def pieces(tokenizer: Tokenizer, ids: list[int], learned: list[bool], colour: bool) -> Text:
    """Pieces side by side; learned ones green, or in ⟦ ⟧ where there is no colour."""
    shown = Text()
    marked = False
    for index, (token_id, mask) in enumerate(zip(ids, learned, strict=True)):
        if mask != marked and not colour:
            shown.append("⟦" if mask else "⟧")
        marked = mask
        piece = tokenizer.piece(token_id).decode("utf-8", errors="backslashreplace")
        style = ("black on green" if index % 2 else "black on bright_green") if mask else ""
        style = style or ("on grey23" if index % 2 else "on grey35")
        shown.append(piece.replace("\n", "\\n\n"), style=style)
    if marked and not colour:
        shown.append("⟧")
    return shown
