"""The size ratchet: files, functions and lines may not outgrow what is written here.

Raise a number only in the commit that needs it, and say why in its message.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "lines in all of fourbee/": 34000,
    "lines of the biggest file": 450,
    "lines of the longest function": 60,
    "statements at the level of a module": 12,
    "parameters without a type": 0,
    "modules without a docstring": 0,
}


def main() -> int:
    measured = dict.fromkeys(LIMITS, 0)
    worst: dict[str, str] = {}
    for path in sorted((ROOT / "fourbee").rglob("*.py")):
        measure(path, measured, worst)
    failed = False
    for name, limit in LIMITS.items():
        value, where = measured[name], worst.get(name, "")
        mark = "ok" if value <= limit else "TOO MUCH"
        failed |= value > limit
        print(f"{name:38} {value:6} of {limit:6}  {mark}  {where}")
    return 1 if failed else 0


def measure(path: Path, measured: dict[str, int], worst: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = str(path.relative_to(ROOT))

    def biggest(key: str, value: int, where: str) -> None:
        if value > measured[key]:
            measured[key], worst[key] = value, where

    lines = text.count("\n")
    measured["lines in all of fourbee/"] += lines
    biggest("lines of the biggest file", lines, name)
    loose = [node for node in tree.body if isinstance(node, ast.If | ast.For | ast.With | ast.Expr)]
    biggest("statements at the level of a module", len(loose), name)
    if ast.get_docstring(tree) is None:
        measured["modules without a docstring"] += 1
        worst["modules without a docstring"] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            biggest("lines of the longest function", length, f"{name}:{node.lineno}")
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                if argument.annotation is None and argument.arg not in ("self", "cls"):
                    measured["parameters without a type"] += 1
                    worst["parameters without a type"] = f"{name}:{node.lineno}"


if __name__ == "__main__":
    sys.exit(main())
