"""What becomes of a client's requests in the engine: their events, as they come.

Lives on the event loop. Who calls the engine is `engine_client.py`; what events become is
`generation.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fourbee.engine.request import Event, Finished, Request
from fourbee.server.errors import ApiError

# Events that may wait for a client that does not read, before its request is ended.
MAX_UNREAD_EVENTS = 4096


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
