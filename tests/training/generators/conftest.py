"""The lexicon, and what an assistant's turn looks like when a model says it."""

from __future__ import annotations

import json

import pytest

from fourbee.training.generators.lexicon import Lexicon, load_lexicon
from fourbee.training.generators.sample import Message, Sample


@pytest.fixture(scope="session")
def lexicon() -> Lexicon:
    return load_lexicon()


def spoken(message: Message) -> str:
    """The text of an assistant's turn, its tool call in Qwen3's format."""
    if "tool_calls" not in message:
        return message["content"]
    function = message["tool_calls"][0]["function"]
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def last_answer(sample: Sample) -> str:
    """What the sample teaches to say last."""
    return spoken(sample.messages[-1]) if sample.messages else sample.completion


def asked(sample: Sample) -> str:
    """The prompt that a split goes by: the last question, or the raw text."""
    questions = [m["content"] for m in sample.messages if m["role"] == "user"]
    return questions[-1] if questions else sample.prompt
