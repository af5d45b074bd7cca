"""The engine's own thread, and the event loop's view of what it does.

asyncio is on one side, the blocking engine on the other. Commands cross by a queue and are obeyed
before the next step, so that an abort takes effect within one step; the events of a step cross back
together, by one call on the loop. An idle engine waits on the queue and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, Protocol

from fourbee.engine.request import Event, Finished, Request
from fourbee.foundation.errors import FourbeeError
from fourbee.server.errors import (
    ApiError,
    as_api_error,
    engine_failed,
    internal_error,
    shutting_down,
)

logger = logging.getLogger(__name__)

# Events that may wait for a client that does not read, before its request is ended.
MAX_UNREAD_EVENTS = 4096

# Seconds given to a last step at the end, before the thread is left behind.
LAST_STEP_SECONDS = 5.0


class PendingStep(Protocol):
    """A launched step."""

    def result(self) -> list[Event]:
        """Waits for the step; its events."""
        ...


class EngineLike(Protocol):
    """What the thread needs of an engine (`engine/engine.py` is one)."""

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


class Generation:
    """The events of one client's requests as they come; lives on the event loop."""

    def __init__(self, requests: Sequence[Request], abort: Callable[[Iterable[str]], None]) -> None:
        self.living = {request.id for request in requests}
        self._abort = abort
        self._events: list[Event] = []
        self._error: ApiError | None = None
        self._is_accepted = False
        self._changed = asyncio.Event()

    async def accepted(self) -> None:
        """Until the engine has queued all requests. Raises ApiError when it does not."""
        while not self._is_accepted:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def next_events(self) -> list[Event]:
        """All events since the last call, at least one, oldest first.

        Raises ApiError when the requests cannot go on. Not to be called when all have finished.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        events, self._events = self._events, []
        return events

    def abort(self, request_id: str) -> None:
        """End one of the requests; no more of its events come."""
        if request_id in self.living:
            self.living.remove(request_id)
            self._abort([request_id])

    def close(self) -> None:
        """End all requests that still live. Harmless when there are none."""
        living, self.living = self.living, set()
        if living:
            self._abort(living)

    def accept(self) -> None:
        """The engine has queued all requests."""
        self._is_accepted = True
        self._changed.set()

    def deliver(self, event: Event) -> None:
        """One more event of a living request."""
        if event.request_id not in self.living:
            return
        if len(self._events) >= MAX_UNREAD_EVENTS:
            message = f"{MAX_UNREAD_EVENTS} tokens were waiting to be read; read the stream faster"
            self.fail(ApiError(408, message, "timeout_error", "client_too_slow"))
            self.close()
            return
        self._events.append(event)
        if isinstance(event, Finished):
            self.living.remove(event.request_id)
        self._changed.set()

    def fail(self, error: ApiError) -> None:
        """What has come can still be read; then `next_events` raises `error`."""
        self._error = error
        self._changed.set()


Command = Callable[[], None]


class EngineThread:
    """Owns an engine. Everything but the thread's own loop is called on the event loop."""

    def __init__(self, engine: EngineLike) -> None:
        """To be made on the running event loop; `start` starts the thread."""
        self.state: Literal["running", "failed", "stopping"] = "running"
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._generations: dict[str, Generation] = {}
        # A daemon: a step that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    @property
    def num_living(self) -> int:
        """Requests whose end has not come yet."""
        return len(self._generations)

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue requests together: all of them, or `next_events` raises why not.

        ApiError 503 when the engine has failed or is being stopped.
        """
        if self.state != "running":
            raise engine_failed() if self.state == "failed" else shutting_down()
        generation = Generation(requests, self._abort)
        self._generations |= {request.id: generation for request in requests}
        self._commands.put(partial(self._add, requests, generation))
        return generation

    async def stop(self, grace: float, hurry: Callable[[], bool]) -> None:
        """Take no more requests; end the living ones after `grace` seconds; end the thread.

        `hurry` is asked meanwhile: no more waiting when it says so.
        """
        if self.state == "running":
            self.state = "stopping"
        deadline = self._loop.time() + grace
        while self._generations and self._loop.time() < deadline and not hurry():
            await asyncio.sleep(0.02)
        for generation in set(self._generations.values()):
            generation.fail(shutting_down())
            generation.close()
        self._commands.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, LAST_STEP_SECONDS)

    def _abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            if self._generations.pop(request_id, None) is not None:
                self._commands.put(partial(self._engine.abort, request_id))

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            generation = self._generations.get(event.request_id)
            if generation is None:  # aborted since
                continue
            if isinstance(event, Finished):
                del self._generations[event.request_id]
            generation.deliver(event)

    def _refuse(self, generation: Generation, error: ApiError) -> None:
        generation.fail(error)
        generation.close()

    def _crashed(self) -> None:
        self.state = "failed"
        generations, self._generations = self._generations, {}
        for generation in set(generations.values()):
            generation.fail(internal_error())

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while self._obey():
                events = self._engine.launch().result()
                if events:
                    self._loop.call_soon_threadsafe(self._deliver, events)
        except Exception:
            logger.exception("the engine failed")
            self._loop.call_soon_threadsafe(self._crashed)

    def _obey(self) -> bool:
        """Obey all commands, waiting for one while there is no work; False when it is the end."""
        while not (self._engine.has_work and self._commands.empty()):
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True

    def _add(self, requests: Sequence[Request], generation: Generation) -> None:
        added: list[str] = []
        try:
            for request in requests:
                added.append(self._engine.add(request))
        except FourbeeError as error:
            for request_id in added:
                self._engine.abort(request_id)
            self._loop.call_soon_threadsafe(self._refuse, generation, as_api_error(error))
        else:
            self._loop.call_soon_threadsafe(generation.accept)
