"""`serve`: what it says, refuses, and how it ends; where signals are, in its own process."""

import os
import re
import signal
import socket
import threading
import time

import httpx
import pytest

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.server.engine_messages import ModelSettings
from fourbee.server.serve import ModelText, ServeSettings, listen, serve

from .fakes import ThreadWorker, make_model
from .processes import ServerProcess


@pytest.fixture
def start():
    """Starts servers in processes of their own."""
    servers = []

    def call(**options) -> ServerProcess:
        servers.append(ServerProcess(**options))
        return servers[-1]

    yield call
    for server in servers:
        server.__exit__()


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_and_the_process_with_code_0(start, number):
    server = start()
    assert server.says("ready: ")
    url = re.search(
        r"ready: (http://127.0.0.1:\d+) \(chat page; the API is at /v1\)", server.lines[-1]
    )[1]
    body = {"prompt": "say forever", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, trust_env=False) as answer:
        chunks = answer.iter_text()
        assert "hello" in next(chunks)
        began = time.monotonic()
        server.process.send_signal(number)
        assert "the server is shutting down" in "".join(chunks)
    assert server.ends() == 0
    assert time.monotonic() - began < 10
    assert server.lines[0] == "loading fourbee-mini ..."
    assert re.fullmatch(
        r"loaded in \d+\.\d s: 0\.0 million parameters, context of 512 tokens", server.lines[1]
    )
    assert server.lines[3:] == ["stopping"]


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error():
    asked = []

    def load_text(settings: ServeSettings):
        # The server listens before it loads.
        asked.append(httpx.get(f"{settings.url}/health", trust_env=False))
        raise ModelFileError("/no/such: no config.json; expected a Qwen3 folder")

    def load(settings: ModelSettings):
        time.sleep(1)  # what is loading meanwhile is let go

    with pytest.raises(ModelFileError, match=r"^/no/such: no config.json"):
        serve(ServeSettings(port=0), lambda: ThreadWorker(load), load_text)
    assert (asked[0].status_code, asked[0].json()) == (503, {"status": "loading"})


def test_nothing_is_loaded_for_an_address_that_cannot_be_used():
    def load(*settings):
        raise AssertionError

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            serve(ServeSettings(port=port), load, load)
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0 is reachable"):
        serve(ServeSettings(host="0.0.0.0"), load, load)


def test_the_default_signal_handlers_are_back_afterwards(tokenizer):
    before = signal.getsignal(signal.SIGTERM)

    model = make_model(tokenizer)

    def load_text(settings: ServeSettings) -> ModelText:
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return ModelText(tokenizer, model.chat_format, model.defaults)

    serve(ServeSettings(port=0), lambda: ThreadWorker(model.load), load_text)
    assert signal.getsignal(signal.SIGTERM) is before


def test_events_are_sent_at_once():
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_settings_name_the_model_and_the_address(tmp_path):
    assert ServeSettings().model_name == "fourbee-mini"
    assert ServeSettings(model="Qwen/Qwen3-0.6B").model_name == "Qwen/Qwen3-0.6B"
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert ServeSettings(model=str(folder)).model_name == "my-model"
    (tmp_path / "Qwen3-0.6B-Q8_0.gguf").touch()
    assert ServeSettings(model=f"{tmp_path}/Qwen3-0.6B-Q8_0.gguf").model_name == "Qwen3-0.6B-Q8_0"
    assert ServeSettings().url == "http://127.0.0.1:8080"
    assert ServeSettings(host="0.0.0.0", port=81).url == "http://127.0.0.1:81"
    assert ServeSettings(host="::1").url == "http://[::1]:8080"
