"""`fourbee tokens`: ids and pieces of a text, or of a conversation with what training learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fourbee.cli.options import Model
from fourbee.foundation.errors import UsageError

if TYPE_CHECKING:
    from fourbee.text.tokenizer import Tokenizer


def tokens(
    text: Annotated[str | None, typer.Argument(help="The text to cut into tokens.")] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines of {"messages": [...], "tools": [...]}: shows the loss mask.'
        ),
    ] = None,
    line: Annotated[int, typer.Option(min=1, help="Which line of the conversation file.")] = 1,
    control: Annotated[
        bool, typer.Option("--control", help="Read <|im_start|> and the like as control tokens.")
    ] = False,
    model: Model = None,
) -> None:
    """Show the tokens of a text, or of a conversation: what is learned stands out in green."""
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.model.hub import resolve_model

    if (text is None) == (conversation is None):
        raise UsageError('expected either a text, as in fourbee tokens "Hello", or --conversation')
    tokenizer = open_checkpoint(resolve_model(model)).tokenizer
    if text is not None:
        ids = tokenizer.encode(text, control_tokens=control)
        learned = [False] * len(ids)
    else:
        assert conversation is not None
        ids, learned = _conversation(tokenizer, conversation, line)
    console = Console(highlight=False)
    console.print(_pieces(tokenizer, ids, learned, console.color_system is not None))
    console.print(" ".join(str(token_id) for token_id in ids), style="dim", soft_wrap=True)
    summary = f"{len(ids)} tokens" + (f", {sum(learned)} learned" if any(learned) else "")
    console.print(summary, style="bold")


def _conversation(tokenizer: Tokenizer, path: Path, line: int) -> tuple[list[int], list[bool]]:
    from fourbee.text.chat_format import ChatFormat
    from fourbee.training.data import encode_sample, read_lines

    for number, (_, sample) in enumerate(read_lines([path]), start=1):
        if number == line:
            return encode_sample(sample, tokenizer, ChatFormat(tokenizer))
    raise UsageError(f"--line {line}: {path} has fewer lines")


def _pieces(tokenizer: Tokenizer, ids: list[int], learned: list[bool], colour: bool) -> Text:
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
