"""The engine's process: what becomes of requests, and of processes, when one of them ends."""

import json
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from end_to_end.checkpoints import TINY, write_tiny

from fourbee.kernels.backends import native_built
from fourbee.server.engine_link import spawn_process
from fourbee.server.engine_messages import FromEngine, Load, ModelSettings, NotLoaded
from fourbee.server.frames import FrameSplitter, encode

from .fakes import eventually
from .processes import ServerProcess, is_gone

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def start():
    servers = []

    def call(*arguments, **options) -> ServerProcess:
        servers.append(ServerProcess(*arguments, **options))
        return servers[-1]

    yield call
    for server in servers:
        server.__exit__()


def stream_until_it_ends(server: ServerProcess, began: threading.Event) -> dict:
    """The last event of an endless answer."""
    body = {"prompt": "say forever", "max_tokens": 400, "stream": True, "ignore_eos": True}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
        events = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                began.set()
    return json.loads(events[-1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


FAULTS = [
    (kill, None, "the engine process was ended by SIGKILL .is there enough memory.."),
    (stop, None, "the engine process gave no sign of life for [78] seconds"),
    (None, "say deadlock", "the engine process stood still in a step for [78] seconds"),
    (None, "say abort", "the engine process was ended by signal 6 .Aborted."),
    (None, "say crash", "the engine process ended with exit code 1"),
]


@pytest.mark.parametrize(
    ("fault", "prompt", "said"),
    FAULTS,
    ids=["kill", "stop", "deadlock", "abort", "crash"],
)
def test_a_dead_or_hung_engine_is_noticed_told_and_replaced(start, fault, prompt, said):
    server = start()
    assert server.ask("say hello").json()["choices"][0]["text"] == "hello"
    first = server.engine_pid
    began = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        answer = None if prompt else pool.submit(stream_until_it_ends, server, began)
        if fault is not None:
            assert began.wait(20)
            fault(first)
        broke = time.monotonic()
        whole = pool.submit(server.ask, prompt or "say forever")
        answered = whole.result()
        took = time.monotonic() - broke
        print(f"noticed after {took:.2f} s")
        assert answered.status_code == 503, answered.text
        assert answered.headers["retry-after"] == "1"
        assert answered.json()["error"]["code"] in ("engine_ended", "engine_restarting")
        if answer is not None:
            assert answer.result()["error"]["code"] == "engine_ended"
    assert took < 10
    assert eventually(lambda: server.health() == "ok")
    print(f"served again after {time.monotonic() - broke:.2f} s")
    assert server.ask("say hello").json()["choices"][0]["text"] == "hello"
    assert server.engine_pid != first and is_gone(first)
    assert any(re.fullmatch(f"{said}; it is started again", line) for line in server.lines)
    assert server.lines[-1] == "the engine is back"
    # A failure in Python is told in full.
    assert ("RuntimeError: broken" in server.lines) == (prompt == "say crash")


def test_while_it_is_started_again_health_says_so_and_the_third_failure_is_the_last(start):
    server = start(LOADING_SECONDS=0.5)
    for _ in range(2):
        assert eventually(lambda: server.health() == "ok", 30)
        kill(server.engine_pid)
        assert eventually(lambda: server.health() == "restarting", 2)
        refused = server.ask("say hello")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "engine_restarting"
    assert eventually(lambda: server.health() == "ok", 30)
    kill(server.engine_pid)
    assert eventually(lambda: server.health() == "failed")
    assert server.ask("say hello").json()["error"]["code"] == "engine_failed"
    given_up = [line for line in server.lines if "given up" in line]
    assert given_up == [
        "the engine process was ended by SIGKILL (is there enough memory?); it has failed 3 times "
        "and is given up"
    ]
    server.interrupt()
    assert server.ends() == 0


def test_ctrl_c_ends_answers_and_both_processes(start, tmp_path):
    kept = tmp_path / "kept"
    server = start(KEPT=kept, CLOSE_SECONDS=0.5)
    engine = server.engine_pid
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream_until_it_ends, server, began)
        assert began.wait(20)
        server.interrupt()
        assert answer.result()["error"]["code"] == "shutting_down"
    assert server.ends() == 0
    assert is_gone(engine)
    assert kept.read_text() == "everything"
    assert server.lines[3:] == ["stopping"]


def test_an_engine_that_does_not_end_well_is_told(start):
    server = start(CLOSE_FAILS=1)
    assert server.health() == "ok"
    server.interrupt()
    assert server.ends() == 0
    assert server.lines[3] == "stopping"
    assert "RuntimeError: the disk is gone" in server.lines
    assert server.lines[-1] == "the engine process ended with exit code 1"


def test_signals_to_the_engine_are_not_for_it_to_judge(start):
    server = start()
    assert server.health() == "ok"
    os.kill(server.engine_pid, signal.SIGINT)
    os.kill(server.engine_pid, signal.SIGTERM)
    time.sleep(0.2)
    assert server.ask("say hello").json()["choices"][0]["text"] == "hello"
    assert len(server.lines) == 3


def test_a_second_ctrl_c_does_not_wait_for_anything(start):
    server = start(grace=60, CLOSE_SECONDS=60)
    engine = server.engine_pid
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream_until_it_ends, server, began)
        assert began.wait(20)
        server.interrupt()
        assert server.says("stopping")
        time.sleep(0.3)
        assert server.process.poll() is None
        server.interrupt()
        pressed = time.monotonic()
        assert server.ends() == 0
        assert answer.result()["error"]["code"] == "shutting_down"
    assert time.monotonic() - pressed < 5
    assert is_gone(engine)
    assert server.lines[-1] == "the engine process was not done yet and is ended"


@pytest.mark.parametrize("loading", [0, 60])
def test_no_engine_outlives_its_server(start, loading):
    server = start(LOADING_SECONDS=loading)
    if not loading:
        assert server.health() == "ok"
    engine = server.engine_pid
    time.sleep(0.5)
    server.process.kill()
    assert eventually(lambda: is_gone(engine), 20)


def test_ctrl_c_while_a_model_is_loaded_ends_both_processes(start):
    server = start(LOADING_SECONDS=60)
    engine = server.engine_pid
    time.sleep(0.5)
    server.interrupt()
    pressed = time.monotonic()
    assert server.ends() == 0
    assert time.monotonic() - pressed < 4
    assert is_gone(engine)
    assert server.lines == ["loading fourbee-mini ..."]


def test_an_engine_that_dies_while_it_loads_ends_the_server(start):
    server = start(LOADING_SECONDS=60)
    kill(server.engine_pid)
    assert server.ends() == 1
    assert server.lines[-1] == (
        "fourbee.foundation.errors.FourbeeError: the engine process was ended by SIGKILL "
        "(is there enough memory?)"
    )


NATIVE = """
import sys
from fourbee.server.serve import ServeSettings, serve

serve(ServeSettings(port=0))
known = ("torch", "fourbee.kernels._native", "fourbee.engine.llm", "fourbee.engine.engine")
print("imported:", [name for name in known if name in sys.modules], file=sys.stderr)
"""


def test_the_api_s_process_has_no_engine_and_no_kernels(start):
    server = start(NATIVE)
    answer = server.ask("hello", max_tokens=3)
    assert answer.status_code == 200
    server.interrupt()
    assert server.ends() == 0
    assert server.lines[-1] == "imported: []"


PACKING = """
import sys
from functools import partial

from fourbee.server.engine_link import spawn_process
from fourbee.server.serve import ServeSettings, serve

CHILD = '''
import time
from fourbee.model import quantize
from fourbee.server.engine_process import main

pack = quantize.pack_fast
quantize.pack_fast = lambda *arguments: (time.sleep(0.2), pack(*arguments))[1]
main()
'''
settings = ServeSettings(model={model!r}, quantize="int4", port=0)
serve(settings, partial(spawn_process, ("-c", CHILD)))
"""


@pytest.mark.skipif(not native_built(), reason="the native kernels were not built")
def test_ctrl_c_while_a_model_is_packed_leaves_nothing_behind(start, tmp_path):
    """It ended with code 134 and an unfinished folder once."""
    wide = replace(TINY, hidden_size=128, intermediate_size=128, head_dim=128)
    (tmp_path / "wide").mkdir()
    model = write_tiny(tmp_path / "wide", wide)
    server = start(PACKING.format(model=str(model)), FOURBEE_HOME=tmp_path)
    assert server.says("packing ")
    assert server.says("packed 25%")
    packed = tmp_path / "packed"
    assert [name for name in os.listdir(packed) if name.endswith(".unfinished")]
    engine = server.engine_pid
    server.interrupt()
    assert server.ends() == 0
    assert is_gone(engine)
    assert all(name.endswith(".lock") for name in os.listdir(packed)), os.listdir(packed)
    assert "Traceback" not in "\n".join(server.lines)


def test_modules_in_the_working_folder_are_not_the_engine_s(tmp_path, monkeypatch):
    """A user's folder may hold a queue.py; the command does not import it, nor does its child."""
    for name in ("msgpack", "queue", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    worker = spawn_process()
    with worker.connection as connection:
        connection.sendall(encode(Load(ModelSettings(model="/no/such"))))
        frames, told = FrameSplitter(FromEngine), []
        while not any(isinstance(message, NotLoaded) for message in told):
            told += frames.feed(connection.recv(1000))
    assert "'/no/such': no such folder" in told[-1].failure.message
    assert worker.process.wait(10) == 0
