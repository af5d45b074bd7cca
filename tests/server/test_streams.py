"""Streams on the wire: framing, clients that leave, clients that do not read, many at once."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from fourbee.server import engine_client, request_events, streaming

from .fakes import eventually, make_model, openai_client

CHAT = "/v1/chat/completions"
RAW = "/v1/completions"


def chat_body(text: str, **options) -> dict:
    return {"messages": [{"role": "user", "content": f"say {text}"}], **options}


def test_every_event_is_one_data_line_and_the_last_is_done(http):
    answer = http.post(CHAT, json=chat_body("hello\n\ndata: world", stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"].startswith("req_")
    assert "content-length" not in answer.headers
    *frames, end = answer.text.split("\n\n")
    assert end == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    assert frames[-1] == "data: [DONE]"
    events = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert content == "hello\n\ndata: world"
    assert events[0]["object"] == "chat.completion.chunk"
    assert [event["choices"][0]["finish_reason"] for event in events[-2:]] == [None, "stop"]
    assert events[-1]["choices"][0]["delta"] == {}


def test_a_refused_stream_is_an_ordinary_error(http):
    answer = http.post(CHAT, json=chat_body("hello", stream=True, temperature=9))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"


def test_silence_is_filled_with_comments(start, tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "PING_SECONDS", 0.05)
    server = start(make_model(tokenizer))
    server.engine.step_seconds = 0.3
    answer = httpx.post(server.url + CHAT, json=chat_body("a", stream=True), trust_env=False)
    assert ": still working\n\n" in answer.text
    with openai_client(server.url) as client:
        chunks = client.chat.completions.create(model="tiny", **chat_body("a", stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "a"


@pytest.mark.parametrize("path", [RAW, CHAT])
@pytest.mark.parametrize("stream", [True, False])
def test_when_the_client_leaves_its_requests_end_within_a_step(server, engine, path, stream):
    engine.step_seconds = 0.01
    body = {"prompt": ["say forever"], "n": 3, "max_tokens": 400, "stream": stream}
    if path == CHAT:
        body = chat_body("forever", n=3, max_tokens=400, stream=stream)
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert eventually(lambda: engine.num_living == 3)
    connection.close()
    steps = engine.steps
    assert eventually(lambda: len(engine.aborted) == 3)
    # The time for the news to travel is in here, the rest of the answers is not.
    assert engine.steps - steps < 50
    assert sorted(engine.aborted) == sorted(request.id for request in engine.added)
    assert eventually(lambda: not engine.has_work)
    assert server.client.num_living == 0


def test_closing_the_openai_client_s_stream_ends_the_request(client, engine):
    engine.step_seconds = 0.005
    options = chat_body("forever", stream=True)
    with client.chat.completions.create(model="tiny", **options) as chunks:
        for number, _ in enumerate(chunks):
            if number == 3:
                break
    assert eventually(lambda: engine.aborted == [engine.added[0].id])


def test_a_client_that_leaves_before_the_first_token_is_noticed(server, engine):
    engine.running.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + CHAT, json=chat_body("forever"), timeout=0.3, trust_env=False)
    engine.running.set()  # the answer has no end of its own
    assert eventually(lambda: len(engine.aborted) == len(engine.added) and not engine.has_work)


def test_after_many_clients_have_left_the_next_is_answered(server, engine, http):
    engine.step_seconds = 0.005

    def leave(_: int) -> None:
        with (
            httpx.Client(base_url=server.url, trust_env=False, verify=False) as client,
            pytest.raises(httpx.ReadTimeout),
        ):
            client.post(RAW, json={"prompt": "say forever", "max_tokens": 450}, timeout=0.3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(24)))
    assert http.post(RAW, json={"prompt": "say hello"}).json()["choices"][0]["text"] == "hello"
    assert eventually(lambda: not engine.has_work)


def test_fifty_requests_at_once_each_get_their_own_answer(server, engine):
    engine.step_seconds = 0.002

    def ask(client: openai.OpenAI, number: int) -> str:
        options = {"model": "tiny", **chat_body(f"{number} hello {number}")}
        if number % 2:
            return client.chat.completions.create(**options).choices[0].message.content
        chunks = client.chat.completions.create(**options, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with openai_client(server.url) as client, ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda number: ask(client, number), range(50)))
    assert answers == [f"{number} hello {number}" for number in range(50)]
    assert not engine.has_work


@pytest.mark.parametrize("limit", ["tokens", "time"])
def test_a_client_that_does_not_read_stalls_nobody_and_is_ended(
    start, tokenizer, monkeypatch, limit
):
    if limit == "tokens":
        monkeypatch.setattr(request_events, "MAX_UNREAD_EVENTS", 200)
    else:
        monkeypatch.setattr(streaming, "WRITE_SECONDS", 0.3)
    server = start(make_model(tokenizer, max_context=10**6))
    fields = {"prompt": "say forever", "max_tokens": 900_000, "logprobs": 20, "stream": True}
    body = json.dumps(fields)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as other:
            assert other.post(RAW, json={"prompt": "say hello"}).status_code == 200
            assert eventually(lambda: len(server.engine.aborted) == 1, 20)
            assert other.get("/health").status_code == 200
        assert eventually(lambda: not server.engine.has_work)
        assert server.client.num_living == 0


def test_an_error_of_the_engine_ends_a_stream_with_an_error_event(http, client, engine):
    engine.broken = "the model's logits are not finite: check its weights"
    answer = http.post(CHAT, json=chat_body("hello", stream=True))
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    assert "[DONE]" not in answer.text
    assert json.loads(frames[-1].removeprefix("data: ")) == {
        "error": {
            "message": "the model's logits are not finite: check its weights",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    with pytest.raises(openai.APIError, match="not finite"):
        list(client.chat.completions.create(model="tiny", **chat_body("hello", stream=True)))
    whole = http.post(CHAT, json=chat_body("hello"))
    assert whole.status_code == 500
    assert whole.json()["error"]["message"].startswith("the model's logits are not finite")


def test_a_crash_of_the_engine_is_told_to_everyone_and_to_health_and_mended(
    start, tokenizer, caplog, monkeypatch
):
    monkeypatch.setattr(engine_client, "RESTART_DELAYS", (0.5, 0.0))
    server = start(make_model(tokenizer))
    server.engine.step_seconds = 0.01
    outcomes = []
    with openai_client(server.url) as client:

        def stream() -> None:
            with pytest.raises(openai.APIError) as caught:
                for _ in client.chat.completions.create(
                    model="tiny", **chat_body("forever", stream=True)
                ):
                    outcomes.append("token")
            outcomes.append(caught.value.body["code"])

        thread = threading.Thread(target=stream)
        thread.start()
        assert eventually(lambda: "token" in outcomes)
        server.engine.crash = RuntimeError("secret detail of /home/me")
        thread.join(10)
        server.engine.crash = None
        assert outcomes[-1] == "engine_ended"
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="say hello")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body == {
            "message": "the engine is being started again; try again in a moment",
            "type": "server_error",
            "param": None,
            "code": "engine_restarting",
        }
        health = httpx.get(f"{server.url}/health", trust_env=False)
        assert (health.status_code, health.json()) == (503, {"status": "restarting"})
        assert client.models.retrieve("tiny").id == "tiny"
        assert eventually(lambda: server.serving.status == "ok")
        answer = client.completions.create(model="tiny", prompt="say hello")
        assert answer.choices[0].text == "hello"
    assert "secret detail" in caplog.text
    ended = "the engine process ended with exit code 1; it is started again"
    assert ended in caplog.messages


def test_an_engine_that_only_crashes_is_given_up(start, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(engine_client, "RESTART_DELAYS", (0.0, 0.0))
    server = start(make_model(tokenizer))
    server.engine.crash = RuntimeError("secret detail of /home/me")
    codes = []
    while server.serving.status != "failed":
        assert eventually(lambda: server.serving.status in ("ok", "failed"))
        answer = httpx.post(server.url + RAW, json={"prompt": "a"}, trust_env=False)
        assert answer.status_code == 503 and "secret" not in answer.text
        codes.append(answer.json()["error"]["code"])
    assert codes == ["engine_ended", "engine_ended", "engine_failed"]
    answer = httpx.post(server.url + RAW, json={"prompt": "a"}, trust_env=False)
    assert (answer.status_code, answer.json()["error"]) == (
        503,
        {
            "message": "the engine has failed and serves no more requests; restart the server",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        },
    )
    health = httpx.get(f"{server.url}/health", trust_env=False)
    assert (health.status_code, health.json()) == (503, {"status": "failed"})
    given_up = "the engine process ended with exit code 1; it has failed 3 times and is given up"
    assert caplog.messages[-1] == given_up


def test_answers_between_crashes_are_new_credit(start, tokenizer, monkeypatch):
    monkeypatch.setattr(engine_client, "RESTART_DELAYS", (0.0, 0.0))
    server = start(make_model(tokenizer))
    for _ in range(4):
        server.engine.crash = RuntimeError("broken")
        answer = httpx.post(server.url + RAW, json={"prompt": "a"}, trust_env=False)
        assert answer.json()["error"]["code"] == "engine_ended"
        server.engine.crash = None
        assert eventually(lambda: server.serving.status == "ok")
        answer = httpx.post(server.url + RAW, json={"prompt": "say hello"}, trust_env=False)
        assert answer.json()["choices"][0]["text"] == "hello"


def test_a_fault_of_our_own_is_500_without_detail(start, tokenizer):
    class Broken:
        def encode(self, messages, tools):
            raise ZeroDivisionError("secret detail")

    server = start(make_model(tokenizer, chat_format=Broken()))
    answer = httpx.post(server.url + CHAT, json=chat_body("a"), trust_env=False)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200


def test_the_end_of_the_server_lets_answers_finish_and_ends_the_others(
    start, tokenizer, monkeypatch
):
    monkeypatch.setattr("fourbee.server.serve.GRACE_SECONDS", 0.5)
    server = start(make_model(tokenizer))
    server.engine.step_seconds = 0.02
    with openai_client(server.url) as client:
        ending = client.chat.completions.create(
            model="tiny", **chat_body("hello world", stream=True)
        )
        endless = client.chat.completions.create(model="tiny", **chat_body("forever", stream=True))
        next(iter(endless))
        began = time.monotonic()
        server.begin_stop()
        assert "".join(c.choices[0].delta.content or "" for c in ending) == "hello world"
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(endless)
    server.stop()
    assert time.monotonic() - began < 8
    assert server.engine.num_living == 0
