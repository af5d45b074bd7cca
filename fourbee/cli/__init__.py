"""The `fourbee` command: parses words, prints one line for an error, and calls what does the work.

Each command's module is imported when the command runs, so that `fourbee --version` is quick.
Exit codes: 0 done, 2 usage, 3 everything else, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from fourbee import __version__
from fourbee.cli.bench import bench_app
from fourbee.cli.contexts import contexts_app
from fourbee.cli.data import data_app
from fourbee.cli.evaluate import evaluate
from fourbee.cli.export import export
from fourbee.cli.plan import plan
from fourbee.cli.quantize import quantize
from fourbee.cli.report import report
from fourbee.cli.serve import pull, serve
from fourbee.cli.talk import chat, generate
from fourbee.cli.tokens import tokens
from fourbee.cli.train import train_app
from fourbee.foundation.errors import FourbeeError

_INTERRUPTED = 130

app = typer.Typer(
    name="fourbee",
    help="Serve, adapt, measure and use Qwen3 models on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(chat)
app.command()(generate)
app.command()(pull)
app.command()(plan)
app.command()(quantize)
app.command()(export)
app.command(name="eval")(evaluate)
app.command()(tokens)
app.command()(report)
for group in (train_app, data_app, bench_app, contexts_app):
    app.add_typer(group)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Serve, adapt, measure and use Qwen3 models on your own machine."""
    if version:
        typer.echo(f"fourbee {__version__}")
        raise typer.Exit


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line; returns its exit code and prints one line for an error."""
    # Typer shows help for a missing command as an error; that is what help is for.
    if arguments in (["train"], ["data"], ["bench"], ["contexts"], []):
        arguments = [*arguments, "--help"]
    try:
        # In this mode the code of an `Exit` is returned instead of leaving the process.
        result = typer.main.get_command(app).main(
            arguments, prog_name="fourbee", standalone_mode=False
        )
    except FourbeeError as error:
        return _failed(str(error), error.exit_code)
    except TyperException as error:
        return _failed(_one_line(error), 2)
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error), 3)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    if result == _INTERRUPTED:
        # Typer has turned a command's KeyboardInterrupt into this code.
        return _failed("interrupted", _INTERRUPTED)
    return int(result) if isinstance(result, int) else 0


_RIGHT_FORMS = {
    "int_parsing": "expected a whole number",
    "float_parsing": "expected a number",
}


def _one_line(error: TyperException) -> str:
    if isinstance(error, typer.BadParameter) and error.param and error.__cause__:
        from pydantic import ValidationError  # which has said what is wrong with a value

        if isinstance(error.__cause__, ValidationError):
            wrong = error.__cause__.errors()[0]
            form = _RIGHT_FORMS.get(wrong["type"], wrong["msg"].lower())
            return f"{error.param.opts[0]} {wrong['input']}: {form}"
    message = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    return message[:1].lower() + message[1:]


def _failed(message: str, code: int) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(f"fourbee: {message}")
    return code
