"""A model whose keys and values can be checked: each position holds what it was computed from."""

from __future__ import annotations

import random

from fourbee.engine.kv_cache import KvCache
from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import Chunk, EngineSettings, Scheduler
from fourbee.engine.sequence import DROPPED, WHOLE, Sequence

PAGE = 4  # tokens of a page in these tests


class FakeStorage:
    """Pages as lists: a position holds the recipe and all tokens up to its own, hashed."""

    def __init__(self, pages: int) -> None:
        self.pages, self.page_bytes = pages, 1
        self.content: list[list[int | None]] = [["old"] * PAGE for _ in range(pages)]

    def clear(self, page: int) -> None:
        self.content[page] = [None] * PAGE

    def copy(self, source: int, target: int) -> None:
        self.content[target] = list(self.content[source])

    def read(self, page: int) -> tuple:
        return tuple(self.content[page])

    def fill(self, page: int, read_into) -> bool:
        return read_into(self.content[page])


class FakeStore:
    """A disk that survives restarts and sometimes loses a page."""

    def __init__(self, chance: random.Random) -> None:
        self.pages: dict[bytes, tuple] = {}
        self.chance = chance

    def has(self, key: bytes) -> bool:
        return key in self.pages

    def get_into(self, key, parent, token_ids, page) -> bool:
        if self.chance.random() < 0.05:
            self.pages.pop(key, None)
        found = self.pages.get(key)
        if found is None:
            return False
        assert found[:2] == (parent, tuple(token_ids))
        page[:] = found[2]
        return True

    def put(self, key, parent, token_ids, data, namespace) -> bool:
        self.pages[key] = (parent, tuple(token_ids), data)
        return True


def key_of(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    return parent + b"/" + repr(tokens).encode()


def value(sequence: Sequence, position: int) -> int:
    return hash((sequence.recipe, tuple(sequence.token_ids[: position + 1])))


def next_token(recipe: bytes, token_ids: tuple[int, ...], seed: int) -> int:
    """What the model says; a text is this, again and again."""
    return hash((recipe, token_ids, seed)) % 3


def text_of(request: Request, answer: int, seed: int, recipe: bytes = b"/_Whole") -> list[int]:
    tokens = list(request.prompt_ids)
    for _ in range(answer):
        tokens.append(next_token(recipe, tuple(tokens), seed))
    return tokens


class WholePages:
    """As sparse prompts are read."""

    shares = False
    held = None
    whole_pages = True

    def droppable(self, computed: int) -> range:
        return range(0)


class Window:
    """As streaming is: the first page and the last five positions."""

    shares = False
    held = 5 + 2 * PAGE
    whole_pages = False

    def droppable(self, computed: int) -> range:
        return range(1, max(1, (computed + 1 - 5) // PAGE))


class FakeEngine:
    """A scheduler and its pages around the model; checks every position that a step reads."""

    def __init__(self, settings: EngineSettings, pages: int, store: FakeStore | None) -> None:
        self.storage = FakeStorage(pages)
        self.kv = KvCache(self.storage, store, key_of)
        self.scheduler = Scheduler(settings, self.kv)
        self.living: dict[str, Sequence] = {}

    def add(
        self, name, prompt, answer, seed=0, priority=0, namespace="", scored=False, mode=WHOLE
    ) -> Sequence:
        request = Request(
            name, tuple(prompt), SamplingParams(), 0 if scored else None, priority, namespace
        )
        recipe = f"{namespace}/{type(mode).__name__}".encode()
        one = Sequence(request, len(prompt) + answer, (), seed, recipe, mode)
        self.scheduler.add(one)
        self.living[name] = one
        return one

    def remove(self, one: Sequence, reusable: bool = True) -> None:
        del self.living[one.id]
        self.scheduler.remove(one, reusable)

    def step(self) -> tuple[tuple[Chunk, ...], list[Sequence]]:
        """A step; its chunks, and the sequences that it ended."""
        chunks, ended = self.scheduler.schedule(), []
        for chunk in chunks:
            self._compute(chunk)
        for chunk in chunks:
            one, samples = chunk.sequence, chunk.samples
            one.computed += chunk.count
            self.kv.commit(one)
            if samples:
                token = next_token(one.recipe, tuple(one.token_ids), one.seed)
                if one.append(token) is not None:
                    self.remove(one)
                    ended.append(one)
        return chunks, ended

    def check(self) -> None:
        self.kv.check(self.living.values())

    def _compute(self, chunk: Chunk) -> None:
        one = chunk.sequence
        whole = one.prompt_length // PAGE * PAGE
        if one.mode.whole_pages and one.computed < whole:
            assert one.computed % PAGE == chunk.count % PAGE == 0
            assert one.computed + chunk.count <= whole
        for position in range(one.computed):
            page = one.pages[position // PAGE]
            if page != DROPPED:
                assert self.storage.content[page][position % PAGE] == value(one, position)
        for position in range(one.computed, one.computed + chunk.count):
            page = self.storage.content[one.pages[position // PAGE]]
            assert page[position % PAGE] != "old", "a page that was not cleared"
            page[position % PAGE] = value(one, position)
