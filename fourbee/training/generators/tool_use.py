"""Calculator calls in Qwen3's format: random names among other tools, results to sentences."""

from __future__ import annotations

import json
import random
from typing import Any

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.sample import Message, Sample, assistant, user
from fourbee.training.generators.wording import framed

Tool = dict[str, Any]


def tool_sample(rng: random.Random, lexicon: Lexicon, language: Language) -> Sample:
    """A question that the offered calculator answers: the call, and half of the time the reply."""
    operation = rng.choice("+-*/")
    kind = "word_problems" if rng.random() < 0.35 else "questions"
    a, b = _operands(rng, operation, decimals=kind == "questions")
    template = rng.choice(lexicon.calculator_questions[kind, operation][language])
    if kind == "questions" and operation != "/" and rng.random() < 0.4:
        template = rng.choice(lexicon.arithmetic_questions[operation][language])
    question = framed(rng, lexicon, template.replace("{a}", a).replace("{b}", b), language)
    tool, argument = calculator_tool(rng, lexicon, language)
    tools = [tool, *other_tools(rng, lexicon)]
    rng.shuffle(tools)
    expression = f"{a}{operation}{b}"
    name = tool["function"]["name"]
    turns: list[Message] = [user(question), tool_call(name, {argument: expression})]
    expect: dict[str, Any] = {"kind": "call", "name": name, "value": evaluated(expression)}
    if rng.random() < 0.45:
        answer = _shown(evaluated(expression))
        content = answer if rng.random() < 0.7 else json.dumps({"result": json.loads(answer)})
        reply = rng.choice(lexicon.calculator["replies"][language]).replace("{result}", answer)
        turns += [{"role": "tool", "content": content}, assistant(reply)]
        expect = {"kind": "contains", "value": [answer]}
        return Sample("tool_result", language, tuple(turns), tuple(tools), expect=expect)
    return Sample("tool_call", language, tuple(turns), tuple(tools), expect=expect)


def tool_call(name: str, arguments: dict[str, Any]) -> Message:
    """An assistant's turn that is one call."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def calculator_tool(rng: random.Random, lexicon: Lexicon, language: Language) -> tuple[Tool, str]:
    """A calculator under the usual name or another, and the name of its argument."""
    name, argument = "calculator", "expression"
    if rng.random() < 0.6:
        name = rng.choice(lexicon.calculator["names"]["en"])
        argument = rng.choice(lexicon.calculator["argument_names"]["en"])
    description = rng.choice(lexicon.calculator["descriptions"][language])
    return function_tool(name, description, argument, rng), argument


def other_tools(rng: random.Random, lexicon: Lexicon, at_least: int = 0) -> list[Tool]:
    """Up to three unrelated tools."""
    count = max(at_least, rng.choices((0, 1, 2, 3), (6, 2, 1, 1))[0])
    chosen = rng.sample(lexicon.calculator["other_tools"]["tools"], count)
    return [function_tool(t["name"], t["description"], t["argument"], rng) for t in chosen]


def function_tool(name: str, description: str, argument: str, rng: random.Random) -> Tool:
    """OpenAI's description of a function with one string argument."""
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.3:
        schema["description"] = f"The {argument.replace('_', ' ')}"
    parameters = {"type": "object", "properties": {argument: schema}}
    if rng.random() < 0.8:
        parameters["required"] = [argument]
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def evaluated(expression: str) -> float:
    """The value of `a op b` with plain numbers."""
    operation = next(o for o in "+*/-" if o in expression[1:])
    left, _, right = expression.partition(operation)
    a, b = float(left), float(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operation]


def _operands(rng: random.Random, operation: str, decimals: bool) -> tuple[str, str]:
    def number() -> int:
        digits = rng.choices((1, 2, 3, 4, 5), (2, 6, 6, 4, 1))[0]
        return rng.randint(10 ** (digits - 1) + 1, 10**digits - 1)

    a, b = number(), number()
    if operation == "/" and rng.random() < 0.6:
        b = rng.randint(2, 20)
        a = b * rng.randint(2, 200)
    if operation == "-" and a < b:
        a, b = b, a
    texts = [str(a), str(b)]
    if decimals and rng.random() < 0.15:
        texts = [f"{text}.{rng.randint(1, 9)}" for text in texts]
    return texts[0], texts[1]


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else str(round(value, 4))
