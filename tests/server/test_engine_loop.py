"""The loop in an engine's process: what it does between steps, and which steps it cuts short."""

import socket
import threading
import time
from itertools import count

import pytest

from fourbee.engine.request import Event, Finished, Request
from fourbee.engine.sampling import SamplingParams
from fourbee.server import engine_loop
from fourbee.server.engine_loop import EngineLoop, LoadedModel
from fourbee.server.engine_messages import (
    Abort,
    Accepted,
    Add,
    Events,
    FromEngine,
    Load,
    Loaded,
    ModelSettings,
    Stop,
)
from fourbee.server.engine_pulse import Heartbeat
from fourbee.server.frames import FrameSplitter, encode

from .fakes import eventually


class SlowEngine:
    """Steps last until `go`, a permit each, or an interruption; `did` is what became of it."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.go = threading.Semaphore(0)
        self.idle_work = 0
        self.in_step = threading.Event()
        self._interrupted = threading.Event()
        self._living: list[str] = []
        self._ended: list[Event] = []

    @property
    def has_work(self) -> bool:
        return bool(self._living or self._ended)

    def add(self, request: Request) -> str:
        self._living.append(request.id)
        return request.id

    def abort(self, request_id: str) -> None:
        if request_id in self._living:
            self._living.remove(request_id)
            self._ended.append(Finished(request_id, "abort"))

    def launch(self) -> "SlowEngine":
        return self

    def result(self) -> list[Event]:
        self.in_step.set()
        while self._living and not self.go.acquire(timeout=0.002):
            if self._interrupted.is_set():
                break
        self.did.append("cut" if self._interrupted.is_set() else "step")
        self._interrupted.clear()
        self.in_step.clear()
        events, self._ended = self._ended, []
        return events

    def interrupt(self) -> None:
        self._interrupted.set()

    def idle(self) -> bool:
        if self.idle_work:
            self.idle_work -= 1
            self.did.append("idle")
        return self.idle_work > 0

    def close(self) -> None:
        self.did.append("close")


class Driven:
    """A loop in a thread, and this end of its socket."""

    def __init__(self, engine: SlowEngine) -> None:
        self.engine = engine
        self.socket, self._theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.loop = EngineLoop(
            self._theirs, lambda settings: LoadedModel(engine, 1, 2), orphaned=self._theirs.close
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self._frames, self._arrived = FrameSplitter(FromEngine), []
        self._numbers = count()
        self.send(Load(ModelSettings()))
        assert self.next() == Loaded(1, 2)

    def send(self, *messages) -> None:
        self.socket.sendall(b"".join(map(encode, messages)))

    def next(self):
        while not self._arrived:
            new = self._frames.feed(self.socket.recv(10_000))
            self._arrived += [one for one in new if not isinstance(one, Heartbeat)]
        return self._arrived.pop(0)

    def add(self, *names: str) -> None:
        requests = [Request(name, (1,), SamplingParams()) for name in names]
        number = next(self._numbers)
        self.send(Add.of(number, requests))
        assert self.next() == Accepted(number)
        assert self.engine.in_step.wait(5)

    def end(self) -> None:
        self.send(Stop())
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def driven():
    driven = Driven(SlowEngine())
    yield driven
    driven.socket.close()
    driven.thread.join(10)
    assert not driven.thread.is_alive()


def test_a_step_that_nobody_waits_for_any_more_is_cut_short_at_once(driven):
    driven.add("a", "b")
    began = time.monotonic()
    driven.send(Abort(("a", "b", "long gone")))
    assert driven.next() == Events((Finished("a", "abort"), Finished("b", "abort")))
    assert time.monotonic() - began < 1
    assert driven.engine.did == ["cut", "step"]


def test_a_short_step_of_others_is_not_cut_short(driven, monkeypatch):
    monkeypatch.setattr(engine_loop, "PATIENCE_SECONDS", 0.3)
    driven.add("a", "b")
    driven.send(Abort(("a",)))
    time.sleep(0.1)
    driven.engine.go.release()
    driven.engine.go.release()
    assert driven.next() == Events((Finished("a", "abort"),))
    time.sleep(0.5)
    assert driven.engine.did == ["step", "step"]


def test_a_long_step_of_others_is_cut_short_but_not_two_after_each_other(driven, monkeypatch):
    monkeypatch.setattr(engine_loop, "PATIENCE_SECONDS", 0.1)
    engine = driven.engine
    driven.add("a", "b", "c", "d")
    began = time.monotonic()
    driven.send(Abort(("a",)))
    # Whatever comes meanwhile does not put it off.
    while not engine.did:
        driven.send(Abort(("long gone",)))
        time.sleep(0.02)
    assert engine.did == ["cut"] and 0.1 <= time.monotonic() - began < 2
    assert engine.in_step.wait(5)
    driven.send(Abort(("b",)))
    time.sleep(0.4)
    assert engine.did == ["cut"]
    engine.go.release()
    assert eventually(lambda: engine.did == ["cut", "step"])
    assert engine.in_step.wait(5)
    driven.send(Abort(("c",)))
    assert eventually(lambda: engine.did == ["cut", "step", "cut"])


def test_what_has_ended_already_cuts_nothing(driven, monkeypatch):
    monkeypatch.setattr(engine_loop, "PATIENCE_SECONDS", 0.01)
    driven.add("a")
    driven.send(Abort(("long gone",)))
    time.sleep(0.1)
    assert driven.engine.did == []


def test_idle_work_is_done_between_requests_and_everything_is_kept_at_the_end(driven):
    engine = driven.engine
    driven.add("a")
    engine.idle_work = 3
    driven.send(Abort(("a",)))
    assert eventually(lambda: engine.did == ["cut", "step", "idle", "idle", "idle"])
    driven.end()
    assert engine.did[-1] == "close"


@pytest.mark.parametrize("how", ["told", "left alone", "told nonsense"])
def test_the_end_cuts_the_step_under_way_and_keeps_everything(driven, how):
    driven.add("a")
    if how == "told":
        driven.send(Stop())
    elif how == "left alone":
        driven.socket.close()
    else:
        driven.socket.sendall(b"\x00\x00\x00\x01\xc1")
    driven.thread.join(5)
    assert driven.engine.did == ["cut", "close"]


def test_an_engine_that_fails_keeps_nothing(driven):
    engine = driven.engine
    raised = []

    def fail() -> list[Event]:
        raise RuntimeError("broken")

    def run() -> None:
        try:
            loop.run()
        except RuntimeError as error:
            raised.append(str(error))

    ours, theirs = socket.socketpair()
    failing = SlowEngine()
    failing.result = fail
    loop = EngineLoop(theirs, lambda settings: LoadedModel(failing, 1, 2), orphaned=theirs.close)
    thread = threading.Thread(target=run)
    thread.start()
    with ours:
        ours.sendall(encode(Load(ModelSettings())))
        ours.sendall(encode(Add.of(0, [Request("a", (1,), SamplingParams())])))
        thread.join(5)
    assert raised == ["broken"] and failing.did == []
    assert engine.did == []
