"""Calculator calls: an offered tool, an expression of the question's numbers, its exact value."""

from __future__ import annotations

import json
import math
import random
import re
from fractions import Fraction

import pytest

from fourbee.evaluation.scoring import expression_value, is_right
from fourbee.training.generators.lexicon import LANGUAGES
from fourbee.training.generators.sample import Sample
from fourbee.training.generators.tool_use import evaluated, other_tools, tool_sample

from .conftest import last_answer, spoken

EXPRESSION = re.compile(r"(\d+(?:\.\d)?)([-+*/])(\d+(?:\.\d)?)")


@pytest.fixture(scope="module", params=LANGUAGES)
def drawn(lexicon, request) -> list[Sample]:
    return [tool_sample(random.Random(i), lexicon, request.param) for i in range(800)]


def called(sample: Sample) -> dict:
    return sample.messages[1]["tool_calls"][0]["function"]


def test_the_call_names_one_offered_tool_and_its_argument(drawn):
    for sample in drawn:
        offered = {tool["function"]["name"]: tool["function"] for tool in sample.tools}
        assert len(offered) == len(sample.tools)
        schema = offered[called(sample)["name"]]["parameters"]
        assert called(sample)["arguments"].keys() == schema["properties"].keys()
        assert schema["type"] == "object"
        assert schema.get("required", [*schema["properties"]]) == [*schema["properties"]]


def test_the_expression_is_made_of_the_questions_numbers(drawn):
    for sample in drawn:
        [expression] = called(sample)["arguments"].values()
        match = EXPRESSION.fullmatch(expression)
        assert match, expression
        # Noise may write a decimal mark in full width.
        question = sample.messages[0]["content"].replace("。", ".")
        asked = re.findall(r"\d+(?:\.\d)?", question)
        assert {match[1], match[3]} <= set(asked), (expression, asked)


def test_a_call_evaluates_to_what_is_expected(drawn):
    calls = [sample for sample in drawn if sample.skill == "tool_call"]
    assert len(calls) > 300
    for sample in calls:
        [expression] = called(sample)["arguments"].values()
        left, operation, right = EXPRESSION.fullmatch(expression).groups()
        a, b = Fraction(left), Fraction(right)
        exact = {"+": a + b, "-": a - b, "*": a * b}[operation] if operation != "/" else a / b
        assert math.isclose(sample.expect["value"], float(exact), rel_tol=1e-12, abs_tol=1e-9)
        assert expression_value(expression) == sample.expect["value"] == evaluated(expression)
        assert sample.expect["name"] == called(sample)["name"]
        assert is_right(spoken(sample.messages[1]), sample.expect)


def test_a_result_is_repeated_in_the_reply(drawn):
    results = [sample for sample in drawn if sample.skill == "tool_result"]
    assert len(results) > 200
    for sample in results:
        assert [m["role"] for m in sample.messages] == ["user", "assistant", "tool", "assistant"]
        [expression] = called(sample)["arguments"].values()
        content = json.loads(sample.messages[2]["content"])
        shown = content["result"] if isinstance(content, dict) else content
        assert math.isclose(shown, expression_value(expression), abs_tol=5.1e-5)
        [text] = sample.expect["value"]
        assert float(text) == shown
        assert text in sample.messages[2]["content"]
        assert is_right(last_answer(sample), sample.expect)


def test_names_arguments_and_companions_vary(drawn):
    names = [called(sample)["name"] for sample in drawn]
    assert 0.3 < names.count("calculator") / len(names) < 0.6
    assert len(set(names)) >= 25
    assert {len(sample.tools) for sample in drawn} == {1, 2, 3, 4}
    first = [sample.tools[0]["function"]["name"] == called(sample)["name"]
             for sample in drawn if len(sample.tools) == 2]  # fmt: skip
    assert 0.3 < sum(first) / len(first) < 0.7


def test_every_operation_and_decimals_occur(drawn):
    expressions = [str(*called(sample)["arguments"].values()) for sample in drawn]
    assert {EXPRESSION.fullmatch(one)[2] for one in expressions} == set("+-*/")
    assert any("." in one for one in expressions)
    assert all(evaluated(one) > -1 for one in expressions)


def test_evaluated_knows_the_four_operations_and_decimals():
    assert [evaluated(e) for e in ("2+3", "2-3", "1.5*4", "7/2")] == [5, -1, 6, 3.5]


def test_other_tools_are_distinct_and_at_least_as_many_as_asked(lexicon):
    for index in range(100):
        names = [t["function"]["name"] for t in other_tools(random.Random(index), lexicon, 2)]
        assert len(set(names)) == len(names) >= 2
