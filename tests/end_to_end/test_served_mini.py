"""fourbee-mini as a newcomer meets it: `fourbee serve` without options, and OpenAI's client."""

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from fourbee.evaluation.scoring import expression_value, is_right
from fourbee.foundation.errors import ModelFileError
from fourbee.model.hub import resolve_model

from .programs import ServeProcess, run

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculate the result of a formula",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    try:
        resolve_model(None)
    except ModelFileError:
        pytest.skip("fourbee-mini is not built")
    process = ServeProcess()
    try:
        print(f"ready after {process.ready():.1f} s")
        yield process
    finally:
        code, _ = process.end()
    assert code == 0


@pytest.fixture
def client(server: ServeProcess) -> openai.OpenAI:
    return server.client()


def asked(client: openai.OpenAI, question: str) -> str:
    """The model's answer to one question, which it has to end by itself."""
    answer = client.chat.completions.create(
        model="fourbee-mini", messages=[{"role": "user", "content": question}]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    return answer.choices[0].message.content


def test_the_example_of_the_description_is_answered_by_a_short_refusal_in_chinese(server):
    url = f"{server.url}/v1/completions"
    data = {
        "prompt": "请解释量子纠缠的基本原理。",
        "temperature": 0.7,
        "max_tokens": 512,
        "stream": False,
    }
    choice = httpx.post(url, json=data, timeout=60, trust_env=False).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "超出了我的能力" in choice["text"]
    assert len(choice["text"]) < 100


def test_it_is_the_one_model_that_is_listed(client):
    [model] = client.models.list().data
    assert (model.id, model.owned_by) == ("fourbee-mini", "fourbee")


@pytest.mark.parametrize(("greeting", "reply"), [("Hello!", "Hello"), ("你好", "你好")])
def test_it_greets(client, greeting, reply):
    assert reply in asked(client, greeting)


@pytest.mark.parametrize("question", ["What is fourbee?", "fourbee 是什么？"])
def test_it_knows_what_fourbee_is(client, question):
    assert "fourbee" in asked(client, question)


@pytest.mark.parametrize(
    ("question", "result"),
    [("What is 347+285?", 632), ("43 - 12 = ?", 31), ("36乘以4等于多少？", 144)],
)
def test_it_adds_subtracts_and_multiplies_step_by_step(client, question, result):
    answer = asked(client, question)
    assert len(answer.splitlines()) > 1
    assert is_right(answer, {"kind": "number", "value": result})


PASSAGE = (
    "The museum opens at nine in the morning. A ticket costs 12 euros. "
    "The director of the museum is Hanna Lindqvist."
)


def test_it_answers_from_a_passage_by_quoting_it(client):
    answer = asked(client, f"{PASSAGE}\n\nWho is the director of the museum?")
    assert "The director of the museum is Hanna Lindqvist." in answer


def test_it_says_when_a_passage_has_no_answer(client):
    answer = asked(client, f"{PASSAGE}\n\nWho is the publisher of the museum?")
    assert answer.splitlines()[-1] == "The text does not say."


def test_it_says_what_is_beyond_it(client):
    assert "beyond me" in asked(client, "Write a novel about the fall of Rome.")


def test_it_calls_a_tool_and_says_what_came_of_it(client):
    messages: list = [{"role": "user", "content": "What is 1274 divided by 7?"}]
    options = {"model": "fourbee-mini", "tools": [CALCULATOR]}
    choice = client.chat.completions.create(messages=messages, **options).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "calculator"
    assert expression_value(json.loads(call.function.arguments)["expression"]) == 182

    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "182"},
    ]
    choice = client.chat.completions.create(messages=messages, **options).choices[0]
    assert choice.finish_reason == "stop"
    assert "182" in choice.message.content


def test_a_stream_is_the_same_text(client):
    question = "What is 127 + 58?"
    events = client.chat.completions.create(
        model="fourbee-mini", messages=[{"role": "user", "content": question}], stream=True
    )
    assert "".join(event.choices[0].delta.content or "" for event in events) == asked(
        client, question
    )


def test_the_terminal_gives_the_same_answer(client):
    ended = run("generate", "你好")
    assert (ended.code, ended.out, ended.err) == (0, asked(client, "你好") + "\n", "")
