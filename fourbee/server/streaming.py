"""Server-sent events, and work that ends when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fourbee.foundation.errors import FourbeeError
from fourbee.server.errors import as_api_error, envelope

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

DONE = b"data: [DONE]\n\n"
PING = b": still working\n\n"

# Seconds of silence after which a comment tells proxies and clients that work goes on.
PING_SECONDS = 15.0

# Seconds for which a client may not read at all before its stream is ended.
WRITE_SECONDS = 60.0

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def while_client_stays(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The work's result; when the client leaves first, the work is cancelled: ClientDisconnect."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def event_frame(event: BaseModel) -> bytes:
    """An event of a stream."""
    return b"data: " + event.model_dump_json().encode() + b"\n\n"


def error_frame(error: BaseException) -> bytes:
    """The event that ends a stream which cannot go on; no [DONE] follows."""
    return b"data: " + json.dumps(envelope(as_api_error(error))).encode() + b"\n\n"


class EventStream(Response):
    """Frames as they come. `close` is called at the end, whoever brought it about."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        super().__init__(headers=HEADERS)
        # A stream has no length beforehand.
        del self.headers["content-length"]
        self._frames = frames
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        try:
            with suppress(ClientDisconnect):
                await while_client_stays(receive, self._send_all(send))
        except TimeoutError:
            logger.warning("a client did not read its stream for %.0f seconds", WRITE_SECONDS)
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(_with_pings(_with_error(self._frames))) as frames:
            async for frame in frames:
                async with asyncio.timeout(WRITE_SECONDS):
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _with_error(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The frames, and when they fail the frame that says so."""
    async with aclosing(frames):
        try:
            async for frame in frames:
                yield frame
        except Exception as error:
            if not isinstance(error, FourbeeError):
                logger.exception("a stream failed")
            yield error_frame(error)


async def _with_pings(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The frames, with comments in long silences."""
    async with aclosing(frames):
        while True:
            coming = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({coming}, timeout=PING_SECONDS))[0]:
                    yield PING
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            frame = coming.result()
            if frame is None:
                return
            yield frame
