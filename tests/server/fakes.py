"""A model that says what it is told to, an engine that obeys the contract, and a live server.

The engine runs in a thread here, behind the same frames and the same client as in its process.
"""

import asyncio
import itertools
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourbee.engine.request import (
    Event,
    Finished,
    PromptScored,
    Request,
    ScoredToken,
    TokenGenerated,
)
from fourbee.engine.sampling import SamplingDefaults
from fourbee.foundation.errors import CapacityError
from fourbee.server.app import create_app
from fourbee.server.engine_client import EngineClient
from fourbee.server.engine_link import Spawn
from fourbee.server.engine_loop import EngineLoop, LoadedModel, LoadModel
from fourbee.server.engine_messages import ModelSettings
from fourbee.server.serve import http_server, listen
from fourbee.server.served_model import ServedModel, Serving
from fourbee.text.bpe import train_bpe
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import openai

CHATML = (
    "{%- for tool in tools or [] %}{{- '<tool>' + (tool | tojson) + '</tool>' }}{%- endfor %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{- call.function | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CONTEXT = 512
DEFAULTS = SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)


def make_tokenizer() -> Tokenizer:
    backend = train_bpe(["say hello to the world, 量子纠缠 🙂"] * 8, 400)
    end = backend.token_to_id("<|im_end|>")
    assert end is not None
    return Tokenizer(backend, chat_template=CHATML, eos_token_ids=[end])


class FakeEngine:
    """Says what follows "say " in the prompt; "say forever" never ends, "say seed" tells its seed.

    `running` can be cleared to hold every step back. `crash`: an exception that steps raise, after
    which nothing is left of the requests. `broken`: steps end their requests with this error.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.max_waiting = 1000
        self.running = threading.Event()
        self.running.set()
        self.step_seconds = 0.0
        self.crash: Exception | None = None
        self.broken: str | None = None
        self.added: list[Request] = []
        self.aborted: list[str] = []
        self.steps = 0
        self._answers: dict[str, Iterator[int]] = {}
        self._requests: dict[str, Request] = {}
        self._counts: dict[str, int] = {}
        self._ended: list[Event] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._ended)

    @property
    def num_living(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> str:
        if len(self._requests) >= self.max_waiting:
            raise CapacityError(f"{self.max_waiting} requests are waiting already: try again later")
        self.added.append(request)
        self._requests[request.id] = request
        self._counts[request.id] = 0
        self._answers[request.id] = self._answer(request)
        return request.id

    def abort(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None:
            self.aborted.append(request_id)
            self._ended.append(Finished(request_id, "abort"))

    def launch(self) -> "FakeEngine":
        return self

    def result(self) -> list[Event]:
        assert self.running.wait(20)
        time.sleep(self.step_seconds)
        self.steps += 1
        if self.crash is not None:
            self._requests.clear()
            raise self.crash
        events, self._ended = self._ended, []
        for request in list(self._requests.values()):
            events += self._step(request)
        return events

    def _answer(self, request: Request) -> Iterator[int]:
        prompt = self.tokenizer.decode(request.prompt_ids)
        found = re.findall(r"say (.*?)(?=<\|im_end\|>|$)", prompt, re.DOTALL)
        said = found[-1] if found else "nothing"
        if said == "forever":
            return itertools.cycle(self.tokenizer.encode("hello ", control_tokens=False))
        if said == "seed":
            said = str(request.params.seed)
        return iter(self.tokenizer.encode(said, control_tokens=True))

    def _step(self, request: Request) -> list[Event]:
        events: list[Event] = []
        if self.broken is not None:
            return [self._finish(request, "error")]
        if request.prompt_logprobs is not None and not self._counts[request.id]:
            scored = tuple(self._scored(i, request.prompt_logprobs) for i in request.prompt_ids[1:])
            events.append(PromptScored(request.id, scored))
        token_id = next(self._answers[request.id], None)
        if token_id is None and request.params.ignore_eos:
            token_id = self.tokenizer.eos_token_ids[0]
        if token_id is None:
            return [*events, self._finish(request, "stop")]
        events.append(
            TokenGenerated(request.id, self._scored(token_id, request.params.logprobs or 0))
        )
        self._counts[request.id] += 1
        limit = request.params.max_tokens or CONTEXT - len(request.prompt_ids)
        if self._counts[request.id] >= limit:
            events.append(self._finish(request, "length"))
        return events

    def _finish(self, request: Request, reason) -> Finished:
        del self._requests[request.id]
        return Finished(request.id, reason, self.broken)

    def _scored(self, token_id: int, num_top: int) -> ScoredToken:
        top = tuple(((token_id + other) % 300, -0.25 - other) for other in range(num_top))
        return ScoredToken(token_id, -0.25, top)


@dataclass(frozen=True)
class FakeModel:
    """What a server is to serve."""

    engine: FakeEngine | None  # None = in a process
    tokenizer: Tokenizer
    chat_format: Any
    name: str = "tiny"
    defaults: SamplingDefaults = DEFAULTS
    max_context: int = CONTEXT
    parameters: int = 12_345
    embedded: bool = True
    created: int = 1_700_000_000

    def load(self, settings: ModelSettings) -> LoadedModel:
        return LoadedModel(self.engine, self.parameters, self.max_context)

    def served(self, engine: EngineClient) -> ServedModel:
        return ServedModel(
            self.name, engine, self.tokenizer, self.chat_format, self.defaults, self.embedded,
            self.created,
        )  # fmt: skip


def make_model(tokenizer: Tokenizer, **changes) -> FakeModel:
    values = {
        "engine": FakeEngine(tokenizer),
        "tokenizer": tokenizer,
        "chat_format": ChatFormat(tokenizer),
    }
    return FakeModel(**(values | changes))


class ThreadWorker:
    """What runs in an engine's process, in a thread of this one."""

    def __init__(self, load: LoadModel) -> None:
        self.connection, self._theirs = socket.socketpair()
        self._loop = EngineLoop(self._theirs, load, orphaned=self._theirs.close)
        self._code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        code = 0
        try:
            self._loop.run()
        except Exception:
            logging.getLogger("fourbee").exception("the engine failed")
            code = 1
        self.kill()
        self._code = code

    def poll(self) -> int | None:
        return self._code

    def kill(self) -> None:
        try:
            self._theirs.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


class LiveServer:
    """The real HTTP server on a free port, in a thread; `model` None = still loading."""

    def __init__(
        self,
        model: FakeModel | None,
        spawn: Spawn | None = None,
        settings: ModelSettings | None = None,
        **options,
    ) -> None:
        self.model = model
        self._spawn = spawn or (lambda: ThreadWorker(self.model.load))
        self._settings = settings or ModelSettings()
        self._options = options
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(60)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = EngineClient(self._spawn, self._settings)
        self.serving = Serving("tiny", self.client)
        if self.model is not None:
            await self._attach()
        self._server = http_server(create_app(self.serving, **self._options), self.serving)
        self._started.set()
        await self._server.serve(sockets=[self._listener])

    async def _attach(self) -> None:
        assert await self.client.start()
        self.serving.attach(self.model.served(self.client))

    @property
    def engine(self) -> FakeEngine:
        return self.model.engine

    def attach(self, model: FakeModel) -> None:
        self.model = model
        asyncio.run_coroutine_threadsafe(self._attach(), self.loop).result(10)

    def begin_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_stop()
        self._thread.join(15)
        assert not self._thread.is_alive()
        self._listener.close()


def eventually(condition, seconds: float = 10.0) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def openai_client(url: str, key: str = "none") -> "openai.OpenAI":
    """OpenAI's client as it comes, without its retries."""
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)
