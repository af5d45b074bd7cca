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
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import uvicorn
from starlette.types import ASGIApp

from fourbee.foundation.errors import UsageError
from fourbee.model.checkpoint_files import Progress
from fourbee.model.hub import EMBEDDED, resolve_model
from fourbee.server.app import create_app
from fourbee.server.auth import check_binding
from fourbee.server.served_model import ServedModel, Serving

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# Seconds that running answers are given when the server is told to stop.
GRACE_SECONDS = 3.0

# Seconds after that for connections to close.
CLOSE_SECONDS = 2


@dataclass(frozen=True)
class ServeSettings:
    """What `fourbee serve` can be told."""

    # A checkpoint folder, a GGUF file or the id of a pulled model; None = fourbee-mini.
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    # As in `LLM.load`.
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    quantize: str = "none"
    kv_type: str = "auto"

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


Load = Callable[[ServeSettings], ServedModel]


def load_model(settings: ServeSettings) -> ServedModel:
    """The model of the settings, ready to run. Raises FourbeeError."""
    from fourbee.engine.llm import LLM

    path = resolve_model(settings.model)
    llm = LLM.load(
        path,
        device=settings.device,
        dtype=settings.dtype,
        backend=settings.backend,
        quantize=settings.quantize,
        kv_type=settings.kv_type,
        progress=_quarters(),
    )
    return ServedModel(
        name=settings.model_name,
        engine=llm.engine,
        tokenizer=llm.tokenizer,
        chat_format=llm.chat_format if llm.tokenizer.chat_template is not None else None,
        defaults=llm.defaults,
        max_context=llm.engine.context_length,
        parameters=llm.num_parameters,
        embedded=settings.model_name == EMBEDDED,
    )


def _quarters() -> Progress:
    """A line in the log for each quarter of what is packed."""
    told = 0

    def tell(_: str, done: int, total: int) -> None:
        nonlocal told
        if 4 * done // total > told:
            told = 4 * done // total
            logger.info("packed %d%%", 25 * told)

    return tell


def serve(settings: ServeSettings, load: Load = load_model) -> None:
    """Serve until SIGINT or SIGTERM, then return.

    Listens first and loads then, so that clients can wait on /health. Tells its steps on stderr.
    Raises FourbeeError with one clear line when the address cannot be used or the model not loaded.
    """
    check_binding(settings.host, settings.api_keys)
    listener = listen(settings.host, settings.port)
    settings = replace(settings, port=listener.getsockname()[1])
    with listener, _steps_on_stderr():
        asyncio.run(_serve(settings, listener, load))


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


async def _serve(settings: ServeSettings, listener: socket.socket, load: Load) -> None:
    serving = Serving(settings.model_name)
    app = create_app(serving, settings.host, settings.api_keys)
    server = http_server(app, serving)
    loading = asyncio.create_task(_load(settings, load, serving, server))
    await server.serve(sockets=[listener])
    if loading.done():
        loading.result()
    else:
        loading.cancel()


async def _load(
    settings: ServeSettings, load: Load, serving: Serving, server: uvicorn.Server
) -> None:
    """Load in the background; a model that cannot be loaded ends the server."""
    logger.info("loading %s ...", settings.model_name)
    began = time.monotonic()
    try:
        model = await _in_daemon_thread(lambda: load(settings))
    except BaseException:
        server.should_exit = True
        raise
    serving.attach(model)
    logger.info(
        "loaded in %.1f s: %.1f million parameters, context of %d tokens",
        time.monotonic() - began,
        model.parameters / 1e6,
        model.max_context,
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
