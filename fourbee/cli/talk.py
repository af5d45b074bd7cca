"""`fourbee chat` and `fourbee generate`: a model in the terminal, streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fourbee.cli.options import Backend, MaxTokens, Model, Quantize, Seed, Temperature, TopK, TopP
from fourbee.foundation.errors import FourbeeError, UsageError

if TYPE_CHECKING:
    from fourbee.engine.llm import LLM
    from fourbee.engine.sampling import SamplingParams
    from fourbee.engine.text_stream import TextDelta

HELP = "/reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    model: Model = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat format.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    backend: Backend = "auto",
    quantize: Quantize = "none",
) -> None:
    """Answer one prompt on standard output."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if raw and system is not None:
        raise UsageError("--system needs the chat format: leave out --raw")
    llm = load(model, backend, quantize)
    params = sampling(llm, max_tokens, temperature, top_p, top_k, seed)
    if raw:
        write(llm.stream(text, params))
        return
    messages = [{"role": "system", "content": system}] if system is not None else []
    write(llm.stream_chat([*messages, {"role": "user", "content": text}], params))


def chat(
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="A system message before all.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    backend: Backend = "auto",
    quantize: Quantize = "none",
) -> None:
    """Talk with a model in the terminal."""
    llm = load(model, backend, quantize)
    params = sampling(llm, max_tokens, temperature, top_p, top_k, seed)
    console = Console(stderr=True, highlight=False)
    console.print(f"[dim]{HELP}[/dim]")
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages = list(opening)
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            continue
        if line.startswith("/"):
            console.print(f"[dim]{HELP}[/dim]")
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                messages.append({"role": "assistant", "content": _answer(llm, messages, params)})
            except FourbeeError as error:
                messages.pop()
                console.print(f"fourbee: {error}", markup=False)


def load(model: str | None, backend: str = "auto", quantize: str = "none") -> LLM:
    """The model of `--model`, with a line on stderr while it loads."""
    from fourbee.engine.llm import LLM
    from fourbee.model.hub import resolve_model

    path = resolve_model(model)
    name, console = model or "fourbee-mini", Console(stderr=True, highlight=False)
    with console.status(escape(f"loading {name} ...")) as status:
        told = False

        def show(_: str, done: int, total: int) -> None:
            nonlocal told
            if not told:
                console.print(
                    f"packing {name} into {quantize}, kept for later starts", markup=False
                )
                told = True
            status.update(escape(f"packing {name} ... {done / total:.0%}"))

        return LLM.load(path, backend=backend, quantize=quantize, progress=show)


def sampling(
    llm: LLM,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
) -> SamplingParams:
    """The checkpoint's own parameters, with what was asked for instead."""
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    return replace(llm.defaults.params, **asked)  # type: ignore[arg-type]


def write(deltas: Iterable[TextDelta]) -> None:
    """Writes an answer as it grows; FourbeeError if it failed."""
    for delta in deltas:
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> str:
    """One streamed answer; Ctrl-C ends it and keeps what there is."""
    text = ""
    try:
        for delta in llm.stream_chat(messages, params):
            text += delta.text
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    sys.stdout.write("\n")
    return text
