"""The engine's own process: the program that the API process starts.

`python -m fourbee.server.engine_process FD` takes a socket, is told by it which model to load, and
runs its engine (`engine_loop.py`). The main thread loads and computes, one thread takes commands,
one beats. Log lines go through the socket too.

The process ends when it is told to and when the other end of the socket is gone. What Ctrl-C means
is decided by the API process: SIGINT and SIGTERM are ignored here.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fourbee.foundation.runtime import return_freed_memory
from fourbee.model.checkpoint_files import Progress
from fourbee.model.hub import resolve_model
from fourbee.server.engine_loop import EngineLoop, LoadedModel, LoadModel
from fourbee.server.engine_messages import ModelSettings, Said

# By name: as a program, this module is called __main__.
logger = logging.getLogger("fourbee.server.engine_process")

# Seconds given to what is under way when the API process is gone.
ORPHAN_SECONDS = 30.0


class EndAsked(BaseException):
    """Raised in the loading of a model that nobody waits for any more."""


def load_engine(settings: ModelSettings) -> LoadedModel:
    """The model of the settings, ready to run. Raises FourbeeError."""
    from fourbee.engine.llm import LLM

    options = {name: value for name, value in vars(settings).items() if name != "model"}
    llm = LLM.load(resolve_model(settings.model), **options, progress=_quarters())
    loaded = LoadedModel(llm.engine, llm.num_parameters, llm.engine.context_length)
    # The tokenizer was needed for its ids of end-of-text; the API's process has its own.
    del llm
    return_freed_memory()
    return loaded


def _quarters() -> Progress:
    """A line in the log for each quarter of what is packed."""
    told = 0

    def tell(_: str, done: int, total: int) -> None:
        nonlocal told
        if 4 * done // total > told:
            told = 4 * done // total
            logger.info("packed %d%%", 25 * told)

    return tell


class _ToTheApi(logging.Handler):
    """Log lines as messages: one process writes the log."""

    def __init__(self, send: Callable[[Said], None]) -> None:
        super().__init__()
        self._send_line = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_line(Said(record.levelno, record.name, self.format(record)))


def main(load: LoadModel = load_engine) -> NoReturn:
    """The program."""
    code = run(socket.socket(fileno=int(sys.argv[1])), load)
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking everything apart first, as an interpreter does, would take a quarter of a second.
    os._exit(code)


def run(connection: socket.socket, load: LoadModel) -> int:
    """Loads and serves until told to stop; the exit code."""
    is_asked = False

    def end_loading(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if loop.loading and not is_asked:
            is_asked = True
            # The main thread leaves what it does, and undoes what it has begun on the way out.
            raise EndAsked

    def stop_loading() -> None:
        # Again until it is heeded: a signal that comes just before a wait does not end the wait.
        while loop.loading and not is_asked:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.1)

    loop = EngineLoop(connection, load, stop_loading, _end_soon)
    signal.signal(signal.SIGUSR1, end_loading)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    logging.getLogger().addHandler(_ToTheApi(loop.send))
    logging.getLogger("fourbee").setLevel(logging.INFO)
    try:
        loop.run()
    except EndAsked:
        return 0
    except Exception:
        logger.exception("the engine failed")
        return 1
    return 0


def _end_soon() -> None:
    """The API process is gone, and nobody else would end this one if it hangs."""
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
