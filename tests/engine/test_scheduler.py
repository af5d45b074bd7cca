"""The scheduler under thousands of random traces, against what must hold whatever happens."""

import random

import pytest

from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings, Scheduler
from fourbee.engine.sequence import Sequence
from fourbee.foundation.errors import CapacityError


def sequence(name: str, prompt: int, answer: int = 4) -> Sequence:
    request = Request(name, tuple(range(prompt)), SamplingParams())
    return Sequence(request, prompt + answer, (), seed=0)


def advance(scheduler: Scheduler) -> list[Sequence]:
    """One step of a model that always says 1; the sequences that it ends."""
    ended = []
    for chunk in scheduler.schedule():
        samples = chunk.samples
        chunk.sequence.computed += chunk.count
        if samples and chunk.sequence.append(1):
            scheduler.remove(chunk.sequence)
            ended.append(chunk.sequence)
    return ended


def counts(scheduler: Scheduler) -> list[tuple[str, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in scheduler.schedule()]


def test_a_prompt_is_read_in_chunks_beside_answers() -> None:
    scheduler = Scheduler(EngineSettings(max_running=2, max_step_tokens=4))
    scheduler.add(sequence("long", 10))
    scheduler.add(sequence("short", 2))
    assert counts(scheduler) == [("long", 4)]
    advance(scheduler)
    advance(scheduler)
    assert counts(scheduler) == [("long", 2), ("short", 2)]
    advance(scheduler)
    scheduler.remove(scheduler.running[1])
    scheduler.add(sequence("next", 9))
    assert counts(scheduler) == [("long", 1), ("next", 3)]


def test_a_request_that_starts_with_computed_tokens_reads_the_rest() -> None:
    scheduler = Scheduler(EngineSettings(), start=lambda one: 7)
    scheduler.add(sequence("a", 10))
    assert counts(scheduler) == [("a", 3)]


def test_a_full_queue_refuses_with_its_limit() -> None:
    scheduler = Scheduler(EngineSettings(max_waiting=2))
    scheduler.add(sequence("a", 1))
    scheduler.add(sequence("b", 1))
    with pytest.raises(CapacityError) as error:
        scheduler.add(sequence("c", 1))
    assert str(error.value) == ("2 requests are waiting already (max_waiting = 2): try again later")


def test_settings_that_cannot_work_are_refused(error_of) -> None:
    assert error_of(EngineSettings, max_running=0) == (
        "max_running = 0: expected at least 1",
        "max_running",
    )
    assert error_of(EngineSettings, max_running=8, max_step_tokens=8) == (
        "max_step_tokens = 8: expected more than max_running = 8, "
        "so that prompts are read beside answers",
        "max_step_tokens",
    )


class Trace:
    """A random life of a scheduler, checked at each step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        running = self.random.randint(1, 4)
        self.settings = EngineSettings(
            max_running=running,
            max_waiting=self.random.randint(1, 6),
            max_step_tokens=running + self.random.randint(1, 8),
        )
        self.started: list[str] = []
        self.scheduler = Scheduler(self.settings, self.start)
        self.living: dict[str, Sequence] = {}
        self.accepted: list[str] = []
        self.never_started: set[str] = set()
        self.ended: list[str] = []

    def start(self, one: Sequence) -> int:
        self.started.append(one.id)
        return self.random.randrange(one.prompt_length) if self.random.random() < 0.3 else 0

    def add(self) -> None:
        one = sequence(
            f"{len(self.accepted)}", self.random.randint(1, 20), self.random.randint(1, 6)
        )
        full = len(self.scheduler.waiting) == self.settings.max_waiting
        assert self.scheduler.has_room != full
        if full:
            with pytest.raises(CapacityError):
                self.scheduler.add(one)
            return
        self.scheduler.add(one)
        self.living[one.id] = one
        self.accepted.append(one.id)

    def abort(self) -> None:
        if self.living:
            one = self.living.pop(self.random.choice(sorted(self.living)))
            if one.state == "waiting":
                self.never_started.add(one.id)
            self.scheduler.remove(one)
            self.ended.append(one.id)

    def step(self) -> None:
        chunks = self.scheduler.schedule()
        ids = [chunk.sequence.id for chunk in chunks]
        assert bool(chunks) == bool(self.living)
        assert len(set(ids)) == len(ids) <= self.settings.max_running
        assert all(0 < chunk.count <= chunk.sequence.uncomputed for chunk in chunks)
        assert sum(chunk.count for chunk in chunks) <= self.settings.max_step_tokens
        # Whoever needs one row has it; the earliest that reads its prompt moves on.
        reading = [one for one in self.scheduler.running if one.uncomputed > 1]
        answering = {one.id for one in self.scheduler.running} - {one.id for one in reading}
        assert answering <= set(ids)
        assert not reading or reading[0].id in ids
        for chunk in chunks:
            samples = chunk.samples
            chunk.sequence.computed += chunk.count
            if samples and chunk.sequence.append(1):
                self.scheduler.remove(chunk.sequence)
                self.ended.append(self.living.pop(chunk.sequence.id).id)

    def check_places(self) -> None:
        waiting, running = self.scheduler.waiting, self.scheduler.running
        assert sorted(one.id for one in (*waiting, *running)) == sorted(self.living)
        assert all(one.state == "waiting" for one in waiting)
        assert all(one.state == "running" for one in running)

    def run(self) -> None:
        for _ in range(self.random.randint(5, 30)):
            act = self.random.random()
            if act < 0.4:
                self.add()
            elif act < 0.5:
                self.abort()
            else:
                self.step()
            self.check_places()
        left = sum(one.max_length for one in self.living.values())
        for _ in range(left):  # at least one token a step: nobody starves
            if not self.living:
                break
            self.step()
        assert not self.living
        self.check_places()
        assert sorted(self.ended, key=int) == self.accepted  # each exactly once
        assert self.started == [one for one in self.accepted if one not in self.never_started]


def test_random_traces_keep_order_and_budget_and_end_every_request_once() -> None:
    for seed in range(2000):
        Trace(seed).run()
