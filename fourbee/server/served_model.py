"""The one model that is served: what the routes need of it, and whether it is there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fourbee.engine.sampling import SamplingDefaults
from fourbee.foundation.memory import memory_bytes
from fourbee.server.answers import Fit, ModelDetails, ModelEntry, SamplingAdvice
from fourbee.server.engine_client import EngineClient
from fourbee.server.errors import model_loading, shutting_down
from fourbee.text.chat_format import Message, Tool
from fourbee.text.tokenizer import Tokenizer

# Bytes of the weights in bfloat16, from the numbers of parameters; a test derives them again.
KNOWN_MODELS = {
    "Qwen/Qwen3-0.6B": 1_192_099_840,
    "Qwen/Qwen3-1.7B": 3_441_149_952,
    "Qwen/Qwen3-4B-Instruct-2507": 8_044_936_192,
    "Qwen/Qwen3-8B": 16_381_470_720,
}

# Weights may take this part of the memory; the rest is for the context and the system.
WEIGHTS_SHARE = 0.8


class ChatEncoder(Protocol):
    """Messages to token ids (`text/chat_format.py` is one)."""

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        """The prompt that ends where the assistant's words begin; UsageError, ModelFileError."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """A loaded model: its engine, and what else the routes need, without its weights."""

    name: str
    engine: EngineClient
    tokenizer: Tokenizer
    # None where the checkpoint has no chat template.
    chat_format: ChatEncoder | None
    defaults: SamplingDefaults
    embedded: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_context(self) -> int:
        """Tokens of a request, answer included."""
        return self.engine.loaded.max_context

    def entry(self) -> ModelEntry:
        """How /v1/models shows it."""
        memory = memory_bytes()
        details = ModelDetails(
            embedded=self.embedded,
            parameters=self.engine.loaded.parameters,
            max_context=self.max_context,
            defaults=SamplingAdvice(
                temperature=self.defaults.temperature,
                top_p=self.defaults.top_p,
                top_k=self.defaults.top_k,
            ),
            fits=[
                Fit(id=name, bytes=size, fits=size <= memory * WEIGHTS_SHARE)
                for name, size in KNOWN_MODELS.items()
            ],
            memory_bytes=memory,
        )
        return ModelEntry(id=self.name, created=self.created, fourbee=details)


class Serving:
    """From the first request to the last: loading, ready, stopped. Lives on the event loop."""

    def __init__(self, name: str, engine: EngineClient) -> None:
        """`name` is what `engine` is loading, for people who ask too early."""
        self.name = name
        self._engine = engine
        self._model: ServedModel | None = None
        self._stopped = False

    @property
    def status(self) -> str:
        """`loading`, `ok`, `restarting`, `failed` or `stopping`, as /health says it."""
        if self._stopped:
            return "stopping"
        if self._model is None:
            return "loading"
        return "ok" if self._engine.state == "running" else self._engine.state

    def attach(self, model: ServedModel) -> None:
        """Begin to serve a loaded model."""
        self._model = model

    @property
    def model(self) -> ServedModel:
        """The model; ApiError 503 until it is there and after the end."""
        if self._stopped:
            raise shutting_down()
        if self._model is None:
            raise model_loading(self.name)
        return self._model

    async def stop(self, grace: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Take no more requests, give the living ones `grace` seconds, end the engine.

        `hurry` is asked meanwhile: no more waiting when it says so.
        """
        self._stopped = True
        await self._engine.stop(grace, hurry)
