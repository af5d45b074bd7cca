"""What the API process and the engine process tell each other: frozen dataclasses for frames.

Requests and events cross as `engine/request.py` has them, errors as their kind, message and
parameter. How they become bytes is `frames.py`; the heartbeat is `engine_pulse.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourbee.engine.request import Event, Request
from fourbee.foundation.errors import (
    CapacityError,
    FourbeeError,
    ModelFileError,
    TrainingError,
    UsageError,
)
from fourbee.server.engine_pulse import Heartbeat

_KINDS = {
    kind.__name__: kind
    for kind in (FourbeeError, UsageError, ModelFileError, CapacityError, TrainingError)
}


@dataclass(frozen=True)
class ModelSettings:
    """Which model an engine runs and how, as in `LLM.load`."""

    # A checkpoint folder, a GGUF file or the id of a pulled model; None = fourbee-mini.
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    quantize: str = "none"
    kv_type: str = "auto"
    max_context: int | None = None
    context_store: str | None = None
    context_store_bytes: int | None = None


@dataclass(frozen=True)
class Failure:
    """An error of the tree; of a subclass that is not in it, the nearest that is."""

    kind: str
    message: str
    parameter: str | None

    @classmethod
    def of(cls, error: FourbeeError) -> Failure:
        """What an error says."""
        kind = next(one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS)
        return cls(kind, str(error), getattr(error, "parameter", None))

    def error(self) -> FourbeeError:
        """The error again."""
        if self.kind == UsageError.__name__:
            return UsageError(self.message, self.parameter)
        return _KINDS.get(self.kind, FourbeeError)(self.message)


# To the engine.


@dataclass(frozen=True)
class Load:
    """Load the model; once, before everything else."""

    settings: ModelSettings


@dataclass(frozen=True)
class Add:
    """Queue all of these requests or none. Choices of one prompt share it, on both sides."""

    number: int  # of this message
    prompts: tuple[tuple[int, ...], ...]  # each once
    requests: tuple[tuple[int, Request], ...]  # the index of its prompt, the request without it

    @classmethod
    def of(cls, number: int, requests: Sequence[Request]) -> Add:
        """The message for some requests."""
        indices: dict[tuple[int, ...], int] = {}
        parts: list[tuple[int, Request]] = []
        for request in requests:
            index = indices.setdefault(request.prompt_ids, len(indices))
            parts.append((index, replace(request, prompt_ids=())))
        return cls(number, tuple(indices), tuple(parts))

    def whole(self) -> list[Request]:
        """The requests again. IndexError for a prompt that is not there."""
        return [replace(one, prompt_ids=self.prompts[index]) for index, one in self.requests]


@dataclass(frozen=True)
class Abort:
    """End these requests; nothing for those that have ended already."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """Keep what is to be kept, and end."""


ToEngine = Load | Add | Abort | Stop


# From the engine.


@dataclass(frozen=True)
class Loaded:
    """The model is there. What the API needs to know of it."""

    parameters: int
    max_context: int


@dataclass(frozen=True)
class NotLoaded:
    """The model could not be loaded; the process ends."""

    failure: Failure


@dataclass(frozen=True)
class Accepted:
    """The requests of `Add` number `number` are queued."""

    number: int


@dataclass(frozen=True)
class Refused:
    """None of the requests of `Add` number `number` is queued."""

    number: int
    failure: Failure


@dataclass(frozen=True)
class Events:
    """All events of a step."""

    events: tuple[Event, ...]


@dataclass(frozen=True)
class Said:
    """A line for the log: level, logger and text."""

    level: int
    logger: str
    text: str


FromEngine = Loaded | NotLoaded | Accepted | Refused | Events | Said | Heartbeat
