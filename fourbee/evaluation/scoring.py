"""What counts as a right answer, by the kind of expectation that a sample carries.

Kinds: `one_of` (the answer is one of the texts), `last_line` (its last line is), `contains` (it
holds all of them), `number` (the last number in it is this), `call` (one tool call of this name
whose expression has this value).
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from fourbee.foundation.errors import UsageError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CALL = re.compile(r"\A\s*<tool_call>\n(.*)\n</tool_call>\s*\Z", re.DOTALL)
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def is_right(answer: str, expect: Mapping[str, Any]) -> bool:
    """Whether `answer` is what `expect` says; UsageError for an expectation of another form."""
    kind = expect.get("kind")
    if kind == "one_of":
        return answer.strip() in _texts(expect)
    if kind == "last_line":
        return answer.strip().rpartition("\n")[2] in _texts(expect)
    if kind == "contains":
        return all(text in answer for text in _texts(expect))
    if kind == "number":
        numbers = _NUMBER.findall(answer.replace("=-", "= -"))
        # 042 is not how 42 is written.
        return bool(numbers) and _is_number(numbers[-1], _number(expect))
    if kind == "call":
        return _is_call(answer, str(expect.get("name")), _number(expect))
    raise UsageError(
        f"expect.kind = {kind!r}: expected one_of, last_line, contains, number or call"
    )


def expression_value(expression: str) -> float:
    """The value of an arithmetic expression of numbers and + - * /; ValueError for anything else.

    Parsed, never evaluated as code.
    """
    try:
        return _node_value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an arithmetic expression: {expression!r}") from error


def _texts(expect: Mapping[str, Any]) -> list[str]:
    value = expect.get("value")
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise UsageError(f"expect.value = {value!r}: expected a list of texts")
    return value


def _number(expect: Mapping[str, Any]) -> float:
    value = expect.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"expect.value = {value!r}: expected a number")
    return float(value)


def _is_number(text: str, value: float) -> bool:
    return float(text) == value and not re.match(r"-?0\d", text)


def _is_call(answer: str, name: str, value: float) -> bool:
    match = _CALL.match(answer)
    if not match:
        return False
    try:
        call = json.loads(match[1])
        [expression] = call["arguments"].values()
        found = expression_value(str(expression))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return call.get("name") == name and math.isclose(found, value, rel_tol=1e-9)


def _node_value(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_node_value(node.left), _node_value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_node_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    raise ValueError("expected numbers and + - * /")
