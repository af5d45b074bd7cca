"""`fourbee serve` and `fourbee chat` as processes: how they start, end, and start again."""

import json
import os
import signal
import socket
import time

import httpx
import pytest

from .conftest import KEY
from .programs import ServeProcess, run

unix = pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")

# Seconds that a server may take to end, with answers running or not.
ENDING = 5.0

LONG_ANSWER = {"prompt": "hello", "max_tokens": 30_000, "ignore_eos": True, "stream": True}


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def health(url: str) -> tuple[int, str] | None:
    """Status code and status of /health; None where nobody listens yet."""
    try:
        answer = httpx.get(f"{url}/health", timeout=60, trust_env=False)
    except httpx.ConnectError:
        return None
    return answer.status_code, answer.json()["status"]


@unix
def test_health_is_503_until_the_model_is_there_and_the_port_is_free_afterwards(tiny):
    server = ServeProcess("--model", str(tiny))
    seen = [None]
    try:
        while seen[-1] != (200, "ok"):
            assert server.process.poll() is None, server.lines
            found = health(server.url)
            if found != seen[-1]:
                seen.append(found)
        seconds = server.ready()
        print(f"ready after {seconds:.1f} s")
    finally:
        code, ending = server.end()
    assert seen == [None, (503, "loading"), (200, "ok")]
    assert code == 0 and ending < ENDING and is_free(server.port)


@unix
def test_a_signal_ends_a_stream_and_the_server_and_the_port_can_be_used_again_at_once(tiny):
    first = ServeProcess("--model", str(tiny))
    first.ready()
    url = f"{first.url}/v1/completions"
    with httpx.stream("POST", url, json=LONG_ANSWER, timeout=60, trust_env=False) as answer:
        events = (line for line in answer.iter_lines() if line)
        assert "text" in json.loads(next(events).removeprefix("data: "))["choices"][0]
        code, seconds = first.end(signal.SIGTERM)
        *_, last = events
    assert (code, first.lines[-1]) == (0, "stopping")
    assert seconds < ENDING
    assert json.loads(last.removeprefix("data: "))["error"] == {
        "message": "the server is shutting down",
        "type": "server_error",
        "param": None,
        "code": "shutting_down",
    }
    second = ServeProcess("--model", str(tiny), port=first.port)
    try:
        second.ready()
        assert health(second.url) == (200, "ok")
    finally:
        code, seconds = second.end(signal.SIGINT)
    assert code == 0 and seconds < ENDING and is_free(second.port)


@unix
def test_a_signal_while_it_loads_ends_a_server_at_once(tiny):
    # Importing torch takes the time in which the signal comes.
    server = ServeProcess("--model", str(tiny), "--backend", "torch")
    while not server.lines:
        time.sleep(0.005)
    code, seconds = server.end()
    assert (code, server.lines) == (0, ["loading tiny ..."])
    assert seconds < ENDING


GREEDY = ("--temperature", "0", "--max-tokens", "12")


def test_chat_reads_lines_and_remembers_the_conversation_until_it_is_reset(tiny, locked_server):
    lines = ["hello", "/what", "and you?", "/reset", "hello", "/exit", "not asked any more"]
    ended = run("chat", "--model", str(tiny), *GREEDY, typed="\n".join(lines))
    help_line = "/reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer."
    assert ended.code == 0
    assert ended.err.count(help_line) == 2 and "Traceback" not in ended.err

    client = locked_server.client(key=KEY)
    messages: list = []
    answers = []
    for question in ("hello", "and you?"):
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=12
        )
        answers.append(answer.choices[0].message.content)
        messages.append({"role": "assistant", "content": answers[-1]})
    assert answers[0] != answers[1]
    assert ended.out == "".join(f"{answer}\n" for answer in (*answers, answers[0]))


def test_generate_answers_as_the_server_does(tiny, locked_server):
    ended = run("generate", "-", "--raw", "--model", str(tiny), *GREEDY, typed="hello")
    client = locked_server.client(key=KEY)
    answer = client.completions.create(model="tiny", prompt="hello", temperature=0, max_tokens=12)
    assert (ended.code, ended.out, ended.err) == (0, answer.choices[0].text + "\n", "")
