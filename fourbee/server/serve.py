"""`serve`: listen, load the model meanwhile, answer until told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import uvicorn
from starlette.types import ASGIApp

from fourbee.engine.sampling import SamplingDefaults
from fourbee.foundation.errors import UsageError
from fourbee.foundation.runtime import return_freed_memory
from fourbee.model.hub import EMBEDDED, resolve_model
from fourbee.server.app import create_app
from fourbee.server.auth import check_binding
from fourbee.server.engine_client import EngineClient
from fourbee.server.engine_link import Spawn, spawn_process
from fourbee.server.engine_messages import ModelSettings
from fourbee.server.served_model import ChatEncoder, ServedModel, Serving
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# Seconds that running answers are given when the server is told to stop.
GRACE_SECONDS = 3.0

# Seconds after that for connections to close.
CLOSE_SECONDS = 2


@dataclass(frozen=True)
class ServeSettings(ModelSettings):
    """What `fourbee serve` can be told."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()

    @property
    def of_model(self) -> ModelSettings:
        """What the engine is told of it."""
        return ModelSettings(**{one.name: getattr(self, one.name) for one in fields(ModelSettings)})

    @property
    def model_name(self) -> str:
        """The name in the API: a folder's own name, a file's without its ending, else the id."""
        if self.model is None:
            return EMBEDDED
        path = Path(self.model).expanduser()
        if path.is_file():
            return path.stem
        return path.resolve().name if path.is_dir() else self.model

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class ModelText:
    """What the API process needs of a model: everything but the weights."""

    tokenizer: Tokenizer
    chat_format: ChatEncoder | None
    defaults: SamplingDefaults


LoadText = Callable[[ServeSettings], ModelText]


def load_text(settings: ServeSettings) -> ModelText:
    """The text side of the settings' model. FourbeeError, also where the weights are damaged."""
    from fourbee.engine.checkpoint import open_checkpoint

    files = open_checkpoint(resolve_model(settings.model))
    files.check()
    tokenizer = files.tokenizer
    chat_format = ChatFormat(tokenizer) if tokenizer.chat_template is not None else None
    return ModelText(tokenizer, chat_format, files.defaults)


def serve(
    settings: ServeSettings, spawn: Spawn = spawn_process, load_text: LoadText = load_text
) -> None:
    """Serve until SIGINT or SIGTERM, then return. `spawn` starts the engine's process.

    Listens first and loads then, so that clients can wait on /health. Tells its steps on stderr.
    Raises FourbeeError with one clear line when the address cannot be used or the model not loaded.
    """
    check_binding(settings.host, settings.api_keys)
    listener = listen(settings.host, settings.port)
    settings = replace(settings, port=listener.getsockname()[1])
    with listener, _steps_on_stderr():
        asyncio.run(_serve(settings, listener, spawn, load_text))


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. UsageError in one line when that cannot be."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: expected a number from 0 to 65535", "port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host}: no such host; try --host 127.0.0.1", "host") from None
    # With its protocol named, asyncio sends each event at once (TCP_NODELAY).
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise _binding_error(host, port, error) from None
    return listener


def _binding_error(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 8080
        return UsageError(f"port {port} is in use: choose another with --port {other}", "port")
    if error.errno == errno.EACCES:
        return UsageError(
            f"port {port} needs more rights: choose one above 1023, --port 8080", "port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"--host {host}: not an address of this machine", "host")
    return UsageError(f"cannot listen on {host}:{port}: {error.strerror}", "host")


def http_server(app: ASGIApp, serving: Serving) -> uvicorn.Server:
    """The HTTP server around an application; its `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return _Server(config, serving)


class _Server(uvicorn.Server):
    """uvicorn, ending answers before connections, and with exit code 0 when told to stop."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers first: their streams keep connections open."""
        # While it loads there is nothing to stop; a load that fails says so itself.
        if self._serving.status != "loading":
            logger.info("stopping")
        await self._serving.stop(GRACE_SECONDS, hurry=lambda: self.force_exit)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on signals, without raising them again afterwards as uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops, the second stops at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def _serve(
    settings: ServeSettings, listener: socket.socket, spawn: Spawn, load_text: LoadText
) -> None:
    engine = EngineClient(spawn, settings.of_model)
    serving = Serving(settings.model_name, engine)
    app = create_app(serving, settings.host, settings.api_keys)
    server = http_server(app, serving)
    loading = asyncio.create_task(_load(settings, engine, load_text, serving, server))
    await server.serve(sockets=[listener])
    # The engine has been stopped, and the loading of the text is not waited for.
    if not loading.done():
        loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    if not loading.cancelled():
        loading.result()


async def _load(
    settings: ServeSettings,
    engine: EngineClient,
    load_text: LoadText,
    serving: Serving,
    server: uvicorn.Server,
) -> None:
    """Load in the background; a model that cannot be loaded ends the server."""
    logger.info("loading %s ...", settings.model_name)
    began = time.monotonic()
    try:
        text, is_wanted = await asyncio.gather(
            _in_daemon_thread(lambda: load_text(settings)), engine.start()
        )
        if not is_wanted:
            return
    except BaseException:
        server.should_exit = True
        raise
    model = ServedModel(
        name=settings.model_name,
        engine=engine,
        tokenizer=text.tokenizer,
        chat_format=text.chat_format,
        defaults=text.defaults,
        embedded=settings.model_name == EMBEDDED,
    )
    return_freed_memory()
    serving.attach(model)
    logger.info(
        "loaded in %.1f s: %.1f million parameters, context of %d tokens",
        time.monotonic() - began,
        engine.loaded.parameters / 1e6,
        engine.loaded.max_context,
    )
    logger.info("ready: %s (chat page; the API is at /v1)", settings.url)


async def _in_daemon_thread(call: Callable[[], ResultT]) -> ResultT:
    """The call's result. Its thread does not keep the process alive, as a pool's would."""
    outcome: Future[ResultT] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised again where it is awaited)
            outcome.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(outcome)


@contextmanager
def _steps_on_stderr() -> Iterator[None]:
    """The steps of fourbee and the warnings of uvicorn, on stderr while we serve."""
    handler = logging.StreamHandler()
    levels = {"fourbee": logging.INFO, "uvicorn": logging.WARNING}
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeHandler(handler)
