"""Writes docs/cli.md from the program's own help, and the README's speed from benchmarks/results.

Tests compare, so that both stay true.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "cli.md"
README = ROOT / "README.md"
# Whose runs of `fourbee bench peers` the README shows.
SHAPES = ("0.6B", "4B")
SPEED = re.compile(r"(?<=<!-- speed -->\n).*?(?=<!-- end of speed -->)", re.DOTALL)
COMMANDS = (
    "serve", "chat", "generate", "pull", "plan", "quantize", "export", "eval", "tokens",
    "bench offline", "bench peers", "bench roofline", "bench outside", "bench quality",
    "bench start", "bench needle", "bench stages", "bench shakespeare", "bench training",
    "bench http", "bench lasting", "bench sparse", "bench streaming",
    "contexts list", "contexts info", "contexts prune", "contexts verify",
    "train tokenizer", "train pretrain", "train sft", "train reward", "train preference",
    "train grpo", "train distill", "report", "data generate", "data check",
    "data abacus", "data blind",
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


def with_speed(readme: str) -> str:
    """The README with the tables that `fourbee bench peers` wrote."""
    parts = []
    for shape in SHAPES:
        page = (ROOT / "benchmarks" / "results" / f"peers-{shape}.md").read_text(encoding="utf-8")
        rows = [line for line in page.splitlines() if line.startswith("|")]
        parts.append("\n".join([f"{shape}:", "", *rows, "", ""]))
    return SPEED.sub(lambda _: "".join(parts), readme)


if __name__ == "__main__":
    PATH.write_text(cli_reference(), encoding="utf-8")
    README.write_text(with_speed(README.read_text(encoding="utf-8")), encoding="utf-8")
