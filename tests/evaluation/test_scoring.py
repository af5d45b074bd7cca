"""What counts as right, kind by kind, and arithmetic that is parsed and never run."""

from __future__ import annotations

import json

import pytest

from fourbee.evaluation.scoring import expression_value, is_right
from fourbee.foundation.errors import UsageError


def call(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SUM = {"kind": "call", "name": "calc", "value": 3}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("yes", True), (" yes\n", True), ("Yes", False), ("yes.", False), ("ye", False), ("", False)],
)
def test_one_of_is_the_whole_answer(answer, right):
    assert is_right(answer, {"kind": "one_of", "value": ["no", "yes"]}) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("a fine day", True), ("day, fine", True), ("fine", False), ("FINE day", False), ("", False)],
)
def test_contains_is_all_of_the_texts(answer, right):
    assert is_right(answer, {"kind": "contains", "value": ["fine", "day"]}) is right


@pytest.mark.parametrize(
    ("answer", "value", "right"),
    [
        ("58+67=125", 125, True),
        ("58+67:\n8+7+0=15, write 5 carry 1\n5+6+1=12\n58+67=125", 125, True),
        ("125 is 58+67", 125, False),
        ("3-15=-12", -12, True),
        ("3-15=-12", 12, False),
        ("The answer is -12.", -12, True),
        ("It is 12.", 12, True),
        ("12.50", 12.5, True),
        ("042", 42, False),
        ("答案是12。", 12, True),
        ("none", 0, False),
        ("", 0, False),
    ],
)
def test_number_is_the_last_one(answer, value, right):
    assert is_right(answer, {"kind": "number", "value": value}) is right


@pytest.mark.parametrize(
    "answer",
    [
        call("calc", {"expression": "1+2"}),
        call("calc", {"e": " 6 / 2 "}),
        call("calc", {"e": "(1+2)*1"}),
        call("calc", {"e": "-1+4"}),
        call("calc", {"e": "3.0000000001"}),
        call("calc", {"e": 3}),
        f"\n{call('calc', {'e': '1+2'})}\n\n",
    ],
)
def test_a_call_is_right_by_name_and_value(answer):
    assert is_right(answer, SUM)


@pytest.mark.parametrize(
    "answer",
    [
        "3",
        call("sum", {"e": "1+2"}),
        call("calc", {"e": "1+3"}),
        call("calc", {"e": "three"}),
        call("calc", {}),
        call("calc", {"a": "1+2", "b": "3"}),
        call("calc", "1+2"),
        call("calc", None),
        "<tool_call>\n[1]\n</tool_call>",
        '<tool_call>\n{"name": "calc"}\n</tool_call>',
        "<tool_call>\n{oops\n</tool_call>",
        "I call: " + call("calc", {"e": "1+2"}),
        call("calc", {"e": "1+2"}) + "\n" + call("calc", {"e": "1+2"}),
        call("calc", {"e": "1+2"}).replace("</tool_call>", ""),
        call("calc", {"e": "9" * 400}),
        '<tool_call>\n{"name": "calc", "arguments": {"e": ' + "[" * 100_000 + "\n</tool_call>",
    ],
)
def test_any_other_call_is_wrong(answer):
    assert not is_right(answer, SUM)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2", 3), ("2-3", -1), ("4*2.5", 10), ("7/2", 3.5), ("-3", -3), ("--3", 3), ("2+3*4", 14),
        ("(2+3)*4", 20), (" 12 ", 12), ("10/4-1", 1.5),
    ],
)  # fmt: skip
def test_expressions_have_the_value_that_arithmetic_gives_them(expression, value):
    assert expression_value(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "open('/etc/passwd').read()", "().__class__", "x",
        "abs(1)",
        "'a'*9", "[1]*9", "{1}", "1 if 1 else 2", "1 and 2", "1<2", "lambda: 1", "(1, 2)", "(y:=1)",
        "f'{1}'", "1j", "True", "None", "...", "+1", "~1", "not 1", "2**9", "9**9**9", "5//2",
        "5%2",
        "1<<9", "1@2", "1;2", "1\n2", "", "1+", "1/0", "1.5/(2-2)", "9" * 400, "9" * 5000,
        "9" * 310 + "+1", "-" * 5_000 + "1", "-" * 100_000 + "1", "(" * 300 + "1", "1\x00",
        "\ud800", "1 2", "12 × 3",
    ],
)  # fmt: skip
def test_whatever_else_is_refused_and_never_run(expression):
    with pytest.raises(ValueError):
        expression_value(expression)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"kind": "regex", "value": ["a"]},
         "expect.kind = 'regex': expected one_of, last_line, contains, number or call"),
        ({}, "expect.kind = None: expected one_of, last_line, contains, number or call"),
        ({"kind": "contains"}, "expect.value = None: expected a list of texts"),
        ({"kind": "contains", "value": []}, "expect.value = []: expected a list of texts"),
        ({"kind": "one_of", "value": "yes"}, "expect.value = 'yes': expected a list of texts"),
        ({"kind": "one_of", "value": [1]}, "expect.value = [1]: expected a list of texts"),
        ({"kind": "number", "value": "12"}, "expect.value = '12': expected a number"),
        ({"kind": "number"}, "expect.value = None: expected a number"),
        ({"kind": "call", "name": "calc", "value": True}, "expect.value = True: expected a number"),
    ],
)  # fmt: skip
def test_an_expectation_of_another_form_is_an_error_and_not_a_score(expect, message):
    with pytest.raises(UsageError) as error:
        is_right("<12>", expect)
    assert str(error.value) == message
