"""The engine for the routes: requests in, their events out, whatever becomes of its process.

Supervises the process. When it dies or hangs, its requests end with an error that says so, and it
is started again; one that fails again and again without an answer is given up. Lives on the event
loop. One process and its frames are `engine_link.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Literal

from fourbee.engine.request import Event, Finished, Request
from fourbee.foundation.errors import FourbeeError
from fourbee.server.engine_link import GONE_SECONDS, EngineLink, Spawn
from fourbee.server.engine_messages import (
    Abort,
    Accepted,
    Add,
    Events,
    FromEngine,
    Load,
    Loaded,
    ModelSettings,
    NotLoaded,
    Refused,
    Stop,
)
from fourbee.server.errors import (
    ApiError,
    as_api_error,
    engine_ended,
    engine_failed,
    engine_restarting,
    shutting_down,
)
from fourbee.server.request_events import Generation

logger = logging.getLogger(__name__)

# Seconds before each new start after a failure. Answers, and a minute of quiet, make the list begin
# anew; when it is at its end, the engine is given up.
RESTART_DELAYS = (0.0, 2.0)
QUIET_SECONDS = 60.0

# Seconds for the engine to keep its contexts and end, and for a model that is loading to be let go.
CLOSE_SECONDS = 20.0

# Why a process has ended that was told to.
AS_TOLD = "the engine process ended with exit code 0"

State = Literal["loading", "running", "restarting", "failed", "stopping"]


class EngineClient:
    """An engine in a process of its own."""

    def __init__(self, spawn: Spawn, settings: ModelSettings) -> None:
        """To be made on the running event loop; `start` starts the process."""
        self.state: State = "loading"
        self._spawn = spawn
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._link: EngineLink | None = None
        self._first: asyncio.Future[bool] = self._loop.create_future()
        self._supervising: asyncio.Task[None] | None = None
        self._loaded: Loaded | None = None
        self._not_loaded: FourbeeError | None = None
        self._generations: dict[str, Generation] = {}
        self._adding: dict[int, Generation] = {}
        self._numbers = count()
        # Of the process that runs: when it was ready, and whether a request has ended well.
        self._ready_at: float | None = None
        self._has_answered = False

    async def start(self) -> bool:
        """Until the model is loaded; False when `stop` came first.

        Raises FourbeeError when it cannot be loaded.
        """
        if self.state == "stopping":
            return False
        self._supervising = asyncio.create_task(self._supervise())
        self._supervising.add_done_callback(self._unsupervised)
        return await self._first

    @property
    def loaded(self) -> Loaded:
        """What the engine says of its model."""
        assert self._loaded is not None, "the model is loading"
        return self._loaded

    @property
    def num_living(self) -> int:
        """Requests whose end has not come yet."""
        return len(self._generations)

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue requests together: all of them, or `next_events` raises why not.

        ApiError 503 when the engine is being restarted, has failed or is being stopped.
        """
        if self.state != "running" or self._link is None:
            raise self._unavailable()
        generation = Generation(requests, self._abort)
        number = next(self._numbers)
        self._link.send(Add.of(number, requests))
        self._adding[number] = generation
        self._generations |= {request.id: generation for request in requests}
        return generation

    async def stop(self, grace: float, hurry: Callable[[], bool]) -> None:
        """Take no more requests; end the living ones after `grace` seconds; end the process.

        `hurry` is asked meanwhile: no more waiting when it says so.
        """
        self.state = "stopping"
        await self._until(lambda: not self._generations, grace, hurry)
        self._end_all(shutting_down())
        link = self._link
        if link is not None:
            link.send(Stop())
            if not await self._until(link.ended.is_set, CLOSE_SECONDS, hurry):
                link.kill("was not done yet and is ended")
                await self._until(link.ended.is_set, GONE_SECONDS, lambda: False)
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
        if not self._first.done():
            self._first.set_result(False)

    async def _until(
        self, done: Callable[[], bool], seconds: float, hurry: Callable[[], bool]
    ) -> bool:
        """Whether it is done in time, and before there is a hurry."""
        deadline = self._loop.time() + seconds
        while not done() and self._loop.time() < deadline and not hurry():
            await asyncio.sleep(0.02)
        return done()

    def _unavailable(self) -> ApiError:
        if self.state == "failed":
            return engine_failed()
        return shutting_down() if self.state == "stopping" else engine_restarting()

    def _abort(self, request_ids: Iterable[str]) -> None:
        living = tuple(one for one in request_ids if self._generations.pop(one, None) is not None)
        if living and self._link is not None:
            self._link.send(Abort(living))

    def _end_all(self, error: ApiError) -> None:
        """Every living request ends with this error."""
        for generation in set(self._generations.values()):
            generation.fail(error)
            generation.close()
        self._adding.clear()

    # Messages of the engine.

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Events):
            self._deliver(message.events)
        elif isinstance(message, Accepted):
            if (generation := self._adding.pop(message.number, None)) is not None:
                generation.accept()
        elif isinstance(message, Refused):
            if (generation := self._adding.pop(message.number, None)) is not None:
                generation.fail(as_api_error(message.failure.error()))
                generation.close()
        elif isinstance(message, NotLoaded):
            self._not_loaded = message.failure.error()
        elif isinstance(message, Loaded):
            self._serve(message)

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            generation = self._generations.get(event.request_id)
            if generation is None:  # aborted since
                continue
            if isinstance(event, Finished):
                del self._generations[event.request_id]
                self._has_answered |= event.reason in ("stop", "length")
            generation.deliver(event)

    def _serve(self, loaded: Loaded) -> None:
        if self.state == "stopping" or self._link is None:
            return
        if self.state == "restarting":
            logger.info("the engine is back")
        self._link.loaded()
        self._loaded, self._ready_at, self._has_answered = loaded, self._loop.time(), False
        self.state = "running"
        if not self._first.done():
            self._first.set_result(True)

    # What becomes of the process.

    async def _supervise(self) -> None:
        """One process after the other, until one is not replaced."""
        failures = 0
        while True:
            self._ready_at, self._not_loaded = None, None
            reason = await self._run_process()
            if self.state == "stopping":
                if reason != AS_TOLD:
                    logger.warning("%s", reason)
                return
            if self.state == "loading":
                self._first.set_exception(self._not_loaded or FourbeeError(reason))
                return
            failures = 1 if self._has_proved_itself() else failures + 1
            if failures > len(RESTART_DELAYS):
                logger.error("%s; it has failed %d times and is given up", reason, failures)
                self.state = "failed"
                self._end_all(engine_failed())
                return
            logger.error("%s; it is started again", reason)
            self.state = "restarting"
            self._end_all(engine_ended())
            await asyncio.sleep(RESTART_DELAYS[failures - 1])

    async def _run_process(self) -> str:
        """One process from its start to its end; why it ended, in one line."""
        try:
            link = self._link = EngineLink(self._spawn())
        except OSError as error:
            return f"the engine process could not be started: {error.strerror}"
        except FourbeeError as error:
            self._not_loaded = error
            return str(error)
        try:
            reason = await link.run(Load(self._settings), self._take)
        finally:
            self._link = None
        if self._not_loaded is not None:
            return f"the engine could not be loaded: {self._not_loaded}"
        return f"the engine process {reason}"

    def _unsupervised(self, supervising: asyncio.Task[None]) -> None:
        """A fault of our own must not leave anybody waiting."""
        if supervising.cancelled() or (error := supervising.exception()) is None:
            return
        logger.error("the engine is not supervised any more", exc_info=error)
        self.state = "failed"
        self._end_all(engine_failed())
        if not self._first.done():
            self._first.set_exception(error)

    def _has_proved_itself(self) -> bool:
        """Whether the process that has just ended was good for something."""
        if self._ready_at is None:
            return False
        return self._has_answered or self._loop.time() - self._ready_at > QUIET_SECONDS
