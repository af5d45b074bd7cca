"""Who runs next: continuous batching, prompts in chunks beside answers, pages for all of them.

Order is by priority, then by arrival. Each step every running request that needs one token gets
its row; what is left of the step's time is for prompts: half for the first of them, so that it
always moves on, half for the shortest, so that they need not wait for long ones. Where pages are
short, the last in order gives its own back and waits again (its pages stay cached as long as they
can). No arrays here, and no model: it is tested with random traces in milliseconds.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fourbee.engine.kv_cache import KvCache
from fourbee.engine.prefix_tree import PAGE_TOKENS
from fourbee.engine.sequence import Sequence
from fourbee.engine.step_cost import StepCost
from fourbee.foundation.errors import CapacityError, UsageError


@dataclass(frozen=True)
class EngineSettings:
    """The engine's limits. UsageError for a value that cannot work."""

    max_running: int = 16  # requests computed at the same time
    max_waiting: int = 256  # requests that wait for that; more are refused
    max_step_tokens: int = 512  # rows of one step, prompts and answers together
    # Predicted milliseconds of a step in which somebody waits for the next token of an answer.
    max_step_ms: int = 250
    # Tokens a request, answer included; None = the model's. Less where memory is short.
    context_length: int | None = None
    window: int = 4096  # of requests that stream: positions that they see
    kv_pages: int | None = None  # pages of 64 tokens in memory; None = as many as are of use

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UsageError(
                    f"{field.name} = {value}: expected at least 1", parameter=field.name
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
    """A bounded queue of waiting sequences and the running ones, each in order of rank."""

    def __init__(self, settings: EngineSettings, kv: KvCache, cost: StepCost | None = None) -> None:
        """`kv` must have the pages of the longest sequence that is ever added."""
        self._settings = settings
        self._kv = kv
        self.cost = cost or StepCost()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._arrivals = 0

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
        self._arrivals += 1
        sequence.arrival = self._arrivals
        insort(self.waiting, sequence, key=_rank)

    def schedule(self) -> tuple[Chunk, ...]:
        """The chunks of the next step; empty when all is done, or waits for the disk.

        The caller moves `computed` on before the next call, and removes what has ended.
        """
        self._admit()
        step = _Step(self._settings, self.cost)
        for sequence in [one for one in self.running if one.uncomputed == 1]:
            if sequence in self.running:  # it may have had to give its pages back since
                self._give_rows(sequence, 1, step)
        for sequence, share in self._readers():
            if sequence not in self.running:
                continue
            if sequence.restoring:
                self._kv.restore(sequence)
            if not sequence.restoring:
                self._give_rows(sequence, step.rows_for(sequence, share), step)
        return tuple(Chunk(sequence, count) for sequence, count in step.counts.items())

    def remove(self, sequence: Sequence, reusable: bool = True) -> None:
        """Ends a sequence wherever it stands; `reusable` as in `KvCache.release`."""
        queue = self.waiting if sequence.state == "waiting" else self.running
        queue.remove(sequence)
        self._kv.release(sequence, reusable)
        sequence.state = "finished"

    def _admit(self) -> None:
        """Starts waiting sequences in order, as long as there are places and pages."""
        for sequence in tuple(self.waiting):
            if len(self.running) >= self._settings.max_running:
                last = self.running[-1]
                if last.request.priority <= sequence.request.priority:
                    break
                self._preempt(last)
            if self.running and self._kv.room < sequence.room_needed:
                break
            # What another is reading just now will be shared when it is there.
            if self._kv.waits_for(sequence, self.running):
                continue
            self.waiting.remove(sequence)
            self._kv.start(sequence)
            assert 0 <= sequence.computed < len(sequence.token_ids)
            sequence.state = "running"
            insort(self.running, sequence, key=_rank)

    def _readers(self) -> Iterator[tuple[Sequence, float]]:
        """Those that read their prompts, and their shares of what is left of the step."""
        reading = [one for one in self.running if one.uncomputed > 1]
        if len(reading) > 1:
            yield reading[0], 0.5
            yield from ((one, 1.0) for one in sorted(reading[1:], key=lambda one: one.uncomputed))
        # Alone, or once more with what others left.
        yield from ((one, 1.0) for one in reading[:1])

    def _give_rows(self, sequence: Sequence, count: int, step: _Step) -> None:
        """As many of `count` rows more as there are pages for, in this step."""
        before = step.counts.get(sequence, 0)
        start = sequence.computed + before
        count = min(count, sequence.uncomputed - before)
        if sequence.mode.whole_pages and before:
            return  # whole pages and what follows them are not of one step
        count = _readable(sequence, start, count)
        if count <= 0:
            return
        there = self._kv.reserve(sequence, start + count)
        while there <= start and (last := self.running[-1]) is not sequence:
            self._preempt(last)
            step.counts.pop(last, None)
            there = self._kv.reserve(sequence, start + count)
        if there > start:
            step.take(sequence, there - start)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to its place in the queue; it is computed anew from what is then still cached."""
        self.running.remove(sequence)
        self._kv.release(sequence, reusable=True)
        sequence.computed = 0
        if sequence.scoring:
            sequence.prompt_scores.clear()
        sequence.state = "waiting"
        insort(self.waiting, sequence, key=_rank)


class _Step:
    """The rows of a step as they are given out."""

    def __init__(self, settings: EngineSettings, cost: StepCost) -> None:
        self.counts: dict[Sequence, int] = {}
        self._rows = settings.max_step_tokens
        self._milliseconds = float(settings.max_step_ms)
        self._cost = cost
        self._answering = False

    def take(self, sequence: Sequence, count: int) -> None:
        start = sequence.computed + self.counts.get(sequence, 0)
        self.counts[sequence] = self.counts.get(sequence, 0) + count
        self._rows -= count
        if sequence.uncomputed == 1:
            self._answering = True
        else:
            self._milliseconds -= self._cost.milliseconds(start, count)

    def rows_for(self, sequence: Sequence, share: float) -> int:
        """Rows that a share of what is left allows: of the rows, and of the time if it matters."""
        most = min(sequence.uncomputed, int(self._rows * share + 0.5))
        if most <= 0 or not self._answering:
            return max(most, 0)
        start = sequence.computed + self.counts.get(sequence, 0)
        left = self._milliseconds * share
        if left <= 0:
            return 0
        return self._cost.rows_within(start, most, left)


def _readable(sequence: Sequence, start: int, count: int) -> int:
    """`count` rows, or whole pages where a mode reads prompts in those alone: one at least."""
    whole = sequence.prompt_length // PAGE_TOKENS * PAGE_TOKENS
    if count <= 0 or not sequence.mode.whole_pages or start >= whole:
        return count
    return min(whole - start, max(1, count // PAGE_TOKENS) * PAGE_TOKENS)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
