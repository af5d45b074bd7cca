"""One engine process as the API process sees it: starting it, the frames of it, and its end.

Lives on the event loop. What is done when it ends is `engine_client.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fourbee.foundation.errors import UsageError
from fourbee.server.engine_messages import FromEngine, Said, ToEngine
from fourbee.server.engine_pulse import BEAT_SECONDS, Heartbeat, Watch
from fourbee.server.frames import FrameError, FrameSplitter, encode

logger = logging.getLogger(__name__)

# Bytes that are read from a socket at a time.
CHUNK_BYTES = 2**18

# Seconds for a process to be gone after its connection is, or after it was killed.
GONE_SECONDS = 3.0


class Worker(Protocol):
    """Who runs the engine: a process, or in tests a thread."""

    @property
    def connection(self) -> socket.socket:
        """This end of the socket between us."""
        ...

    def poll(self) -> int | None:
        """None while it runs, then its exit code, -n for signal n."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


Spawn = Callable[[], Worker]


@dataclass(frozen=True)
class ProcessWorker:
    """An engine process."""

    connection: socket.socket
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        """As `Worker`."""
        return self.process.poll()

    def kill(self) -> None:
        """As `Worker`."""
        self.process.kill()


def spawn_process(program: tuple[str, ...] = ("-m", "fourbee.server.engine_process")) -> Worker:
    """Starts a fresh interpreter with one end of a socket. OSError when it cannot be started."""
    if os.name != "posix":
        raise UsageError("fourbee serve runs on Linux and macOS (on Windows: in WSL)")
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                # With the path of modules that we have ourselves, and not the working folder's.
                [sys.executable, "-P", *program, str(theirs.fileno())],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # The terminal sends Ctrl-C to its group; what it means is ours to say.
                process_group=0,
            )
    except BaseException:
        ours.close()
        raise
    return ProcessWorker(ours, process)


class EngineLink:
    """The connection to an engine process, watched."""

    def __init__(self, worker: Worker) -> None:
        self.ended = asyncio.Event()
        self._worker = worker
        self._watch = Watch()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent = bytearray()  # what was to be sent before there was a writer
        self._fault: str | None = None  # why we have ended it

    def send(self, message: ToEngine) -> None:
        """Nothing when the process is gone."""
        if self._writer is None:
            self._unsent += encode(message)
        elif not self._writer.is_closing():
            self._writer.write(encode(message))

    def kill(self, fault: str | None = None) -> None:
        """Ends the process at once; `run` tells this `fault` then."""
        self._fault = self._fault or fault
        self._worker.kill()

    def loaded(self) -> None:
        """From now on the process is expected to be as quick as an engine, not as a loader."""
        self._watch.loading = False

    async def run(self, first: ToEngine, take: Callable[[FromEngine], None]) -> str:
        """Sends the first message and hands on all that comes, until the process has ended.

        Returns why it ended, in words that go on "the engine process ...".
        """
        reader, self._writer = await asyncio.open_connection(
            sock=self._worker.connection, limit=2 * CHUNK_BYTES
        )
        self._writer.write(encode(first) + self._unsent)
        watching = asyncio.create_task(self._watch_over())
        frames = FrameSplitter(FromEngine)
        try:
            while data := await reader.read(CHUNK_BYTES):
                self._watch.hear()
                for message in frames.feed(data):
                    self._take(message, take)
        except FrameError as error:
            self._fault = f"sent {error}"
        except OSError:
            pass  # it ended before it had read what we sent
        finally:
            watching.cancel()
            self._writer.close()
            code = await self._gone()
            self.ended.set()
        return self._fault or _told(code)

    def _take(self, message: FromEngine, take: Callable[[FromEngine], None]) -> None:
        if isinstance(message, Heartbeat):
            self._watch.beat(message)
        elif isinstance(message, Said):
            logging.getLogger(message.logger).log(message.level, "%s", message.text)
        else:
            take(message)

    async def _watch_over(self) -> None:
        """Kills a process that hangs: its connection ends then, and `run` with it."""
        loop = asyncio.get_running_loop()
        before, is_gone = loop.time(), False
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if is_gone and self._writer is not None:
                # A process that it has left behind holds the other end.
                self._writer.close()
            is_gone = self._worker.poll() is not None
            now = loop.time()
            fault = self._watch.tick(now - before)
            before = now
            if fault is not None:
                self.kill(fault)

    async def _gone(self) -> int | None:
        """The exit code, once the process is gone; it is helped after a while."""
        loop = asyncio.get_running_loop()
        for _ in range(2):
            deadline = loop.time() + GONE_SECONDS
            while self._worker.poll() is None and loop.time() < deadline:
                await asyncio.sleep(0.01)
            if self._worker.poll() is not None:
                break
            self._worker.kill()
        return self._worker.poll()


def _told(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL (is there enough memory?)"
    if code is not None and code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}"
