"""The loop that runs an engine by what comes through a socket.

Commands come by a thread of their own and are obeyed between steps, so that an abort takes effect
within one; the events of a step go out together, in one frame. An idle engine waits and costs
nothing. The program around it is `engine_process.py`, the other end `engine_link.py`. No HTTP here.
"""

from __future__ import annotations

import logging
import math
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fourbee.engine.request import Event, Finished, Request
from fourbee.foundation.errors import CapacityError, FourbeeError
from fourbee.server.engine_messages import (
    Abort,
    Accepted,
    Add,
    Events,
    Failure,
    FromEngine,
    Load,
    Loaded,
    ModelSettings,
    NotLoaded,
    Refused,
    Stop,
    ToEngine,
)
from fourbee.server.engine_pulse import Pulse
from fourbee.server.frames import FrameError, FrameSplitter, encode

logger = logging.getLogger(__name__)

# Bytes that are read from a socket at a time.
CHUNK_BYTES = 2**18

# Seconds of a step that an abort waits for, where it would cost the work of others.
PATIENCE_SECONDS = 0.1


class PendingStep(Protocol):
    """A launched step."""

    def result(self) -> list[Event]:
        """Waits for the step; its events."""
        ...


class EngineLike(Protocol):
    """What the loop needs of an engine (`engine/engine.py` is one)."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add(self, request: Request) -> str:
        """Queues a request; FourbeeError when it cannot."""
        ...

    def launch(self) -> PendingStep:
        """Starts the next step."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends a request; nothing if it has ended already."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """An engine whose step can be cut short."""

    def interrupt(self) -> None:
        """From any thread: ends the step under way early; what it was to do is done again."""
        ...


@runtime_checkable
class KeepsContexts(Protocol):
    """An engine that keeps contexts beyond requests."""

    def idle(self) -> bool:
        """A little work while nothing runs; whether there may be more."""
        ...

    def close(self) -> None:
        """Keeps what is to be kept; the last call."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """An engine, and what the API needs to know of its model."""

    engine: EngineLike
    parameters: int
    max_context: int


LoadModel = Callable[[ModelSettings], LoadedModel]


class EngineLoop:
    """Loads a model and runs its engine by what comes through a socket."""

    def __init__(
        self,
        connection: socket.socket,
        load: LoadModel,
        stop_loading: Callable[[], None] = lambda: None,
        orphaned: Callable[[], None] = lambda: None,
    ) -> None:
        """Both calls are made by another thread than `run`.

        `stop_loading` has `load` raise, if it can; `orphaned` says that the other end is gone.
        """
        self.loading = True
        self._connection = connection
        self._load = load
        self._stop_loading = stop_loading
        self._orphaned = orphaned
        self._sending = threading.Lock()
        self._commands: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._pulse = Pulse(self.send)
        self._interrupt_step: Callable[[], None] | None = None
        self._living: set[str] = set()
        self._cut = -2  # the last step that was cut short

    def run(self) -> None:
        """Until told to stop. Raises what the engine raises."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        first = self._commands.get()
        if not isinstance(first, Load):
            return
        with self._pulse.beating():
            loaded = self._loaded(first.settings)
            if loaded is None:
                return
            engine = loaded.engine
            if isinstance(engine, Interruptible):
                self._interrupt_step = engine.interrupt
            self.send(Loaded(loaded.parameters, loaded.max_context))
            self._serve(engine)
            # Not after a failure: what such an engine would keep may be wrong.
            if isinstance(engine, KeepsContexts):
                engine.close()

    def send(self, message: FromEngine) -> None:
        """From any thread. Nothing when the other end is gone: `run` ends by itself then."""
        frame = encode(message)
        with self._sending, suppress(OSError):
            self._connection.sendall(frame)

    def _loaded(self, settings: ModelSettings) -> LoadedModel | None:
        """The model; None when it cannot be loaded, which is told."""
        try:
            loaded = self._load(settings)
            self.loading = False
            return loaded
        except FourbeeError as error:
            failure = error
        except MemoryError:
            failure = CapacityError("the model does not fit into the memory of this machine")
        except OSError as error:
            named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            failure = FourbeeError(named)
        self.send(NotLoaded(Failure.of(failure)))
        return None

    def _serve(self, engine: EngineLike) -> None:
        idle = engine.idle if isinstance(engine, KeepsContexts) else lambda: False
        while True:
            # Waits only when there is nothing else to do.
            if not self._commands.empty() or not (engine.has_work or idle()):
                command = self._commands.get()
                if isinstance(command, Stop):
                    return
                self._obey(engine, command)
            elif engine.has_work:
                self._step(engine)

    def _obey(self, engine: EngineLike, command: ToEngine) -> None:
        if isinstance(command, Add):
            self._add(engine, command)
        elif isinstance(command, Abort):
            self._living.difference_update(command.request_ids)
            for request_id in command.request_ids:
                engine.abort(request_id)

    def _add(self, engine: EngineLike, command: Add) -> None:
        added: list[str] = []
        try:
            for request in command.whole():
                added.append(engine.add(request))
        except FourbeeError as error:
            for request_id in added:
                engine.abort(request_id)
            self.send(Refused(command.number, Failure.of(error)))
        else:
            self._living.update(added)
            self.send(Accepted(command.number))

    def _step(self, engine: EngineLike) -> None:
        with self._pulse.step():
            events = engine.launch().result()
        if events:
            self.send(Events(tuple(events)))
        ended = [event.request_id for event in events if isinstance(event, Finished)]
        self._living.difference_update(ended)

    # What follows runs in the thread of commands.

    def _listen(self) -> None:
        """Takes commands until the end, and cuts short the step that they make useless."""
        frames = FrameSplitter(ToEngine)
        cut: tuple[int, float] | None = None  # a step, and the time when it is cut short
        waiting = select.poll()  # not select(): its files are numbered below 1024
        waiting.register(self._connection, select.POLLIN)
        while True:
            patience = None if cut is None else max(0.0, cut[1] - time.monotonic())
            readable = waiting.poll(None if patience is None else math.ceil(1000 * patience))
            if cut is not None and time.monotonic() >= cut[1]:
                if cut[0] == self._pulse.steps:
                    self._interrupt()
                cut = None
            if not readable:
                continue
            commands = self._received(frames)
            for command in commands or [Stop()]:
                self._commands.put(command)
                if isinstance(command, Stop):
                    self._interrupt()
                elif isinstance(command, Abort):
                    wanted = self._cut_for(set(command.request_ids))
                    if wanted is not None and (cut is None or cut[0] != wanted[0]):
                        cut = wanted
            if not commands:
                self._orphaned()
                return

    def _received(self, frames: FrameSplitter) -> list[ToEngine]:
        """At least one command; none at the end."""
        try:
            while data := self._connection.recv(CHUNK_BYTES):
                if commands := frames.feed(data):
                    return commands
        except FrameError as error:
            logger.error("the API process sent %s", error)
        except OSError:
            pass
        return []

    def _cut_for(self, aborted: set[str]) -> tuple[int, float] | None:
        """Cuts the step short when it was for these alone; else when and which, if it may be.

        Where it costs others work, only a long step is, and never two after each other: those who
        come and go must not keep those who stay from getting on.
        """
        if not self._living & aborted:
            return None
        if self._living <= aborted:
            self._interrupt()
            return None
        step = self._pulse.steps
        return None if step <= self._cut + 1 else (step, time.monotonic() + PATIENCE_SECONDS)

    def _interrupt(self) -> None:
        if self.loading:
            self._stop_loading()
        elif self._interrupt_step is not None and self._pulse.in_step:
            self._cut = self._pulse.steps
            self._interrupt_step()
