"""Writes docs/cli.md from the program's own help; a test compares, so that it stays true."""

from __future__ import annotations

import os
from pathlib import Path

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
COMMANDS = (
    "serve", "chat", "generate", "pull", "quantize", "export", "eval", "tokens",
    "train tokenizer", "train pretrain", "train sft", "data generate", "data blind",
)  # fmt: skip


def cli_reference() -> str:
    """The page: each command's help as the terminal shows it."""
    # Before typer is imported: plain text of one width, wherever this runs.
    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TYPER_USE_RICH": "0"}
    from typer.testing import CliRunner

    from fourbee.cli import app

    parts = ["# The command line\n\nWritten by `make docs` from `fourbee --help`.\n"]
    for words in COMMANDS:
        result = CliRunner().invoke(app, [*words.split(), "--help"], prog_name="fourbee")
        lines = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## fourbee {words}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(cli_reference(), encoding="utf-8")
