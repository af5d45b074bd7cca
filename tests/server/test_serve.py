"""`serve`: what it says, refuses, and how it ends; where signals are, in its own process."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.server.serve import ServeSettings, listen, serve

from .fakes import eventually, make_model

PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from server.fakes import make_model, make_tokenizer
from fourbee.server import serve as module
from fourbee.server.serve import ServeSettings, serve

module.GRACE_SECONDS = 0.3

def load(settings):
    time.sleep({seconds})
    model = make_model(make_tokenizer())
    model.engine.step_seconds = 0.01
    return model

serve(ServeSettings(port=0), load)
"""


class Process:
    """A server in a process; `lines` is what it said on stderr so far."""

    def __init__(self, loading_seconds: float = 0.0) -> None:
        tests = str(Path(__file__).resolve().parents[1])
        program = PROGRAM.format(tests=tests, seconds=loading_seconds)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def says(self, word: str) -> bool:
        return eventually(lambda: any(word in line for line in self.lines), 30)

    def ends(self) -> int:
        code = self.process.wait(15)
        self._reader.join(10)
        self.process.stderr.close()
        assert "Traceback" not in "\n".join(self.lines)
        return code


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_and_the_process_with_code_0(number):
    server = Process()
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


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_a_signal_ends_a_server_that_is_still_loading():
    server = Process(loading_seconds=60)
    assert server.says("loading fourbee-mini ...")
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    assert server.ends() == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error():
    asked = []

    def load(settings: ServeSettings):
        # The server listens before it loads.
        asked.append(httpx.get(f"{settings.url}/health", trust_env=False))
        raise ModelFileError("/no/such: no config.json; expected a Qwen3 folder")

    with pytest.raises(ModelFileError, match=r"^/no/such: no config.json"):
        serve(ServeSettings(port=0), load)
    assert (asked[0].status_code, asked[0].json()) == (503, {"status": "loading"})


def test_nothing_is_loaded_for_an_address_that_cannot_be_used():
    def load(settings: ServeSettings):
        raise AssertionError

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            serve(ServeSettings(port=port), load)
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0 is reachable"):
        serve(ServeSettings(host="0.0.0.0"), load)


def test_the_default_signal_handlers_are_back_afterwards(tokenizer):
    before = signal.getsignal(signal.SIGTERM)

    def load(settings: ServeSettings):
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return make_model(tokenizer)

    serve(ServeSettings(port=0), load)
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
