"""The scheduler and the pages under thousands of random traces, against what must always hold."""

import random

import pytest

from fourbee.engine import kv_cache, prefix_tree, scheduler
from fourbee.engine.scheduler import EngineSettings
from fourbee.engine.sequence import WHOLE
from fourbee.engine.step_cost import StepCost
from fourbee.foundation.errors import CapacityError
from tests.engine.kv_model import PAGE, FakeEngine, FakeStore, WholePages, Window, text_of


@pytest.fixture(autouse=True)
def small_pages(monkeypatch) -> None:
    monkeypatch.setattr(prefix_tree, "PAGE_TOKENS", PAGE)
    monkeypatch.setattr(kv_cache, "PAGE_TOKENS", PAGE)
    monkeypatch.setattr(scheduler, "PAGE_TOKENS", PAGE)
    monkeypatch.setattr(kv_cache, "MIN_TAIL", 1)
    monkeypatch.setattr(kv_cache, "RESTORED_AT_ONCE", 2)


def engine(pages: int = 100, store=None, **settings) -> FakeEngine:
    return FakeEngine(EngineSettings(**settings), pages, store)


def counts(chunks) -> list[tuple[str, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in chunks]


def numbers(start: int, count: int) -> range:
    return range(100 * start, 100 * start + count)


def test_a_prompt_is_read_in_chunks_beside_answers() -> None:
    one = engine(max_running=2, max_step_tokens=4)
    one.add("long", numbers(1, 10), 4)
    one.add("short", numbers(2, 2), 4)
    # Half of a step is for the first, half for the shortest.
    assert counts(one.step()[0]) == [("long", 2), ("short", 2)]
    assert counts(one.step()[0]) == [("short", 1), ("long", 3)]
    for _ in range(2):
        assert counts(one.step()[0])[0] == ("short", 1)
    one.add("next", numbers(3, 9), 4)
    assert counts(one.step()[0]) == [("long", 1), ("next", 3)]


def test_a_long_prompt_neither_starves_nor_starves_others() -> None:
    one = engine(max_running=3, max_step_tokens=8, pages=200)
    long = one.add("long", numbers(1, 300), 1)
    for index in range(30):
        one.add(f"{index}", numbers(index + 10, 6), 1)
    steps = 0
    while len(one.living) > 1:
        before = long.computed
        one.step()
        assert long.computed > before
        steps += 1
    assert steps < 50


def test_the_smaller_priority_goes_first_and_takes_the_place_of_others() -> None:
    one = engine(max_running=1)
    one.add("later", numbers(1, 8), 4, priority=1)
    one.step()
    one.add("urgent", numbers(2, 8), 2, priority=-1)
    one.add("usual", numbers(3, 8), 2)
    order = []
    while one.living:
        order += [ended.id for ended in one.step()[1]]
    assert order == ["urgent", "usual", "later"]


def test_who_gave_its_pages_back_goes_on_where_it_was() -> None:
    one = engine(pages=6, max_running=3)
    first = one.add("first", numbers(1, 9), 8)
    second = one.add("second", numbers(2, 9), 8)
    states = set()
    while one.living:
        one.step()
        one.check()
        states.add(second.state)
    assert states >= {"waiting", "running"}
    for ended in (first, second):
        assert ended.token_ids == text_of(ended.request, 8, 0)


def test_choices_of_one_prompt_read_it_once() -> None:
    one = engine(max_step_tokens=64)
    for index in range(4):
        one.add(f"{index}", numbers(1, 41), 3, seed=index)
    assert counts(one.step()[0]) == [("0", 41)]
    # Ten whole pages and, as the first goes on from it, nothing else.
    assert counts(one.step()[0]) == [("0", 1), ("1", 1), ("2", 1), ("3", 1)]


def test_a_full_queue_refuses_with_its_limit() -> None:
    one = engine(max_waiting=2)
    one.add("a", [1], 1)
    one.add("b", [1], 1)
    with pytest.raises(CapacityError) as error:
        one.add("c", [1], 1)
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


def test_chunks_beside_answers_keep_to_the_milliseconds() -> None:
    one = engine(max_step_tokens=512, max_step_ms=100, pages=400)
    one.scheduler.cost.observe(rows=100, units=100, milliseconds=200)  # 2 ms a row
    one.add("answering", numbers(1, 5), 100)
    one.step()
    one.add("reading", numbers(2, 500), 1)
    assert counts(one.step()[0]) == [("answering", 1), ("reading", 50)]
    one.remove(one.living["answering"])
    assert counts(one.step()[0]) == [("reading", 450)]  # nobody waits


def test_the_cost_of_a_row_is_learned_and_grows_with_the_keys_before_it() -> None:
    cost = StepCost(key_share=0.01)
    assert cost.units(0, 100) == 100 * 1.5
    cost.observe(rows=8, units=8, milliseconds=1000)  # bound by memory: says nothing
    cost.observe(rows=200, units=cost.units(0, 200), milliseconds=800)
    assert cost.milliseconds(0, 200) == pytest.approx(800)
    assert cost.milliseconds(10_000, 200) == pytest.approx(800 * 102 / 2)
    assert cost.rows_within(0, 500, 250) < 125 < cost.rows_within(0, 500, 1000)
    assert cost.rows_within(1_000_000, 500, 1) == 1


class Trace:
    """A random life of an engine, restarts included, checked at each step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        running = self.random.randint(1, 5)
        self.settings = EngineSettings(
            max_running=running,
            max_waiting=self.random.randint(1, 8),
            max_step_tokens=running + self.random.randint(1, 24),
            max_step_ms=self.random.randint(1, 20),
        )
        self.pages = self.random.randint(10, 40)
        self.store = FakeStore(self.random) if self.random.random() < 0.5 else None
        self.engine = FakeEngine(self.settings, self.pages, self.store)
        self.stems = [[self.random.randrange(3) for _ in range(24)] for _ in range(3)]
        self.added = self.ended = 0

    def add(self) -> None:
        # Beginnings in common, whole pages and parts of them; at most what all pages hold.
        stem = self.random.choice(self.stems)[: self.random.randint(0, 24)]
        prompt = stem + [self.random.randrange(3) for _ in range(self.random.randint(1, 8))]
        choices = self.random.choice((1, 1, 1, 3))
        namespace = self.random.choice(("", "", "other"))
        for _ in range(choices):
            if not self.engine.scheduler.has_room:
                with pytest.raises(CapacityError):
                    self.engine.add("full", prompt, 1)
                return
            answer = self.random.randint(1, min(8, PAGE * self.pages - len(prompt)))
            priority = self.random.choice((0, 0, 0, 1, -1))
            scored = self.random.random() < 0.1
            name = f"{self.added}"
            mode = self.random.choice((WHOLE, WHOLE, WHOLE, WholePages(), Window()))
            self.engine.add(name, prompt, answer, self.added % 3, priority, namespace, scored, mode)
            self.added += 1

    def abort(self) -> None:
        if self.engine.living:
            name = self.random.choice(sorted(self.engine.living))
            self.engine.remove(self.engine.living[name], self.random.random() < 0.8)
            self.ended += 1

    def restart(self) -> None:
        """Everything in memory is lost, what was written to the disk is not."""
        if self.store:
            self.engine.kv.save_some(self.random.randint(0, 10))
        self.ended += len(self.engine.living)
        self.engine = FakeEngine(self.settings, self.pages, self.store)

    def step(self) -> None:
        chunks, ended = self.engine.step()
        assert all(chunk.count > 0 for chunk in chunks)
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        # Modes of whole pages take a page where less is left.
        counted = [one.count for one in chunks if not one.sequence.mode.whole_pages]
        assert sum(counted) <= self.settings.max_step_tokens
        # The first in order always moves on, unless it reads from the disk.
        reads = any(one.restoring for one in self.engine.scheduler.running)
        assert chunks or reads or not self.engine.living
        for one in ended:
            answer = one.max_length - one.prompt_length
            assert one.token_ids == text_of(one.request, answer, one.seed, one.recipe)
        self.ended += len(ended)

    def run(self) -> None:
        for _ in range(self.random.randint(5, 40)):
            act = self.random.random()
            if act < 0.35:
                self.add()
            elif act < 0.42:
                self.abort()
            elif act < 0.44:
                self.restart()
            else:
                self.step()
            self.engine.check()
        for _ in range(3000):  # nobody waits for ever
            if not self.engine.living:
                break
            self.step()
        assert not self.engine.living, "a deadlock"
        assert self.ended == self.added
        self.engine.check()
        counts = self.engine.kv.counts
        assert counts.referenced == 0 and counts.total == self.pages


def test_random_traces_lose_no_page_and_tell_no_wrong_text() -> None:
    for seed in range(1000):
        Trace(seed).run()


@pytest.mark.slow
def test_ten_thousand_random_traces() -> None:
    for seed in range(1000, 11_000):
        Trace(seed).run()
