"""One live server for the tests that only ask; others start their own."""

from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from fourbee.text.tokenizer import Tokenizer

from .fakes import FakeEngine, LiveServer, eventually, make_model, make_tokenizer, openai_client


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="package")
def shared_server(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    server = LiveServer(make_model(tokenizer))
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: LiveServer) -> Iterator[LiveServer]:
    """The shared server with its engine as new; nothing may live on in it after a test."""
    engine = shared_server.engine
    engine.added.clear()
    engine.aborted.clear()
    yield shared_server
    engine.running.set()
    engine.step_seconds, engine.broken, engine.max_waiting = 0.0, None, 1000
    assert eventually(lambda: not engine.has_work)


@pytest.fixture
def engine(server: LiveServer) -> FakeEngine:
    return server.engine


@pytest.fixture
def start() -> Iterator[Callable[..., LiveServer]]:
    """Starts servers that the test has for itself."""
    servers: list[LiveServer] = []

    def call(*args, **kwargs) -> LiveServer:
        servers.append(LiveServer(*args, **kwargs))
        return servers[-1]

    yield call
    for server in servers:
        server.stop()


@pytest.fixture(scope="package")
def shared_http(shared_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def http(server: LiveServer, shared_http: httpx.Client) -> httpx.Client:
    return shared_http


@pytest.fixture(scope="package")
def shared_client(shared_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai_client(shared_server.url) as client:
        yield client


@pytest.fixture
def client(server: LiveServer, shared_client: openai.OpenAI) -> openai.OpenAI:
    return shared_client
