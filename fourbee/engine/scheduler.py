"""Who runs next: continuous batching with chunked prefill, first come, first served.

Each step, every running request that needs one token gets its row, then prompts are read in order
of arrival until the step's budget of rows is spent; requests join and leave between steps. No
arrays here, and no model: it is tested with random traces in milliseconds. It never preempts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from fourbee.engine.sequence import Sequence
from fourbee.foundation.errors import CapacityError, UsageError


@dataclass(frozen=True)
class EngineSettings:
    """The engine's limits. UsageError for a value that cannot work."""

    max_running: int = 16  # requests computed at the same time
    max_waiting: int = 256  # requests that wait for that; more are refused
    max_step_tokens: int = 512  # rows of one step, prompts and answers together
    context_length: int | None = None  # tokens a request, answer included; None = the model's
    # Positions kept of finished requests, so that a prompt that goes on from one is read quickly.
    max_idle_tokens: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_idle_tokens" else 1
            if value is not None and value < least:
                raise UsageError(
                    f"{field.name} = {value}: expected at least {least}", parameter=field.name
                )
        if self.max_step_tokens <= self.max_running:
            raise UsageError(
                f"max_step_tokens = {self.max_step_tokens}: expected more than "
                f"max_running = {self.max_running}, so that prompts are read beside answers",
                parameter="max_step_tokens",
            )


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of a sequence to be computed in one step."""

    sequence: Sequence
    count: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's last token, so that the next one is sampled."""
        return self.count == self.sequence.uncomputed


class Scheduler:
    """A bounded queue of waiting sequences and the running ones, both in order of arrival."""

    def __init__(
        self, settings: EngineSettings, start: Callable[[Sequence], int] = lambda sequence: 0
    ) -> None:
        """`start` is called once when a sequence begins to run.

        It returns how many tokens are computed already, less than the prompt has.
        """
        self._settings = settings
        self._start = start
        self.waiting: deque[Sequence] = deque()
        self.running: deque[Sequence] = deque()

    @property
    def has_room(self) -> bool:
        """Whether one more sequence can wait."""
        return len(self.waiting) < self._settings.max_waiting

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; CapacityError when the queue is full."""
        if not self.has_room:
            limit = self._settings.max_waiting
            raise CapacityError(
                f"{limit} requests are waiting already (max_waiting = {limit}): try again later"
            )
        assert sequence.state == "waiting"
        self.waiting.append(sequence)

    def schedule(self) -> tuple[Chunk, ...]:
        """The chunks of the next step, at most `max_step_tokens` rows; empty when all is done.

        The caller moves `computed` on before the next call, and removes what has ended.
        """
        chunks: list[Chunk] = []
        budget = self._settings.max_step_tokens
        for sequence in self._by_turn():
            count = min(sequence.uncomputed, budget)
            chunks.append(Chunk(sequence, count))
            budget -= count
            if not budget:
                break
        return tuple(chunks)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence wherever it stands."""
        queue = self.waiting if sequence.state == "waiting" else self.running
        queue.remove(sequence)
        sequence.state = "finished"

    def _by_turn(self) -> Iterator[Sequence]:
        """Those that need one row, then those that read their prompt, then new ones as they fit.

        Lazy: a waiting sequence starts only when rows are left for it.
        """
        yield from sorted(self.running, key=lambda sequence: sequence.uncomputed > 1)
        while self.waiting and len(self.running) < self._settings.max_running:
            sequence = self.waiting.popleft()
            sequence.state = "running"
            self.running.append(sequence)
            sequence.computed = self._start(sequence)
            assert 0 <= sequence.computed < sequence.prompt_length
            yield sequence
