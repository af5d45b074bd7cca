"""Small pages for tests of the context store: their bytes follow from their keys.

And the writer that tests start as a program of its own, and kill.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fourbee.engine.context_store import ContextStore
from fourbee.engine.kv_recipe import page_key
from fourbee.kernels.attention_pattern import PAGE_KEYS

ROOT = bytes(32)  # a recipe's digest
FILE_BYTES = 4096 + 2048  # of a page, with its head


@dataclass(frozen=True)
class Page:
    """A page as the engine would ask for it."""

    key: bytes
    parent: bytes
    token_ids: tuple[int, ...]

    @property
    def data(self) -> bytes:
        """2 KB that no other page has."""
        return self.key * 64


def text(name: object, pages: int) -> tuple[int, ...]:
    """Token ids that fill so many pages and a bit."""
    drawn = random.Random(str(name))
    return tuple(drawn.randrange(150_000) for _ in range(pages * PAGE_KEYS + 5))


def pages_of(token_ids: tuple[int, ...], root: bytes = ROOT) -> list[Page]:
    """The whole pages of a text."""
    found = []
    for start in range(0, len(token_ids) - PAGE_KEYS + 1, PAGE_KEYS):
        tokens = token_ids[start : start + PAGE_KEYS]
        found.append(Page(page_key(root, tokens), root, tokens))
        root = found[-1].key
    return found


def put(store: ContextStore, pages: list[Page], namespace: str = "") -> None:
    for page in pages:
        store.put(page.key, page.parent, page.token_ids, page.data, namespace)


def get(store: ContextStore, page: Page) -> bytes | None:
    return store.get(page.key, page.parent, page.token_ids)


def stored(store: ContextStore, pages: list[Page]) -> list[bool]:
    """Which of these are there, all of which must be right."""
    found = []
    for page in pages:
        data = get(store, page)
        assert data in (None, page.data)
        found.append(data is not None)
    return found


def files(folder: Path, suffix: str = ".page") -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


# What a writer of one seed writes: texts that begin alike, and contexts of them.
TEXTS, TEXT_PAGES = 6, 8


def conversation(seed: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    common = text("common", 3)[: 3 * PAGE_KEYS]
    for turn in range(TEXTS):
        yield f"chat {seed}", common + text((seed, turn), TEXT_PAGES - 3)


def write(folder: Path, seed: int, max_bytes: int | None, rounds: int) -> None:
    """Writes the conversation of this seed, over and over, and reads some of it meanwhile."""
    store = ContextStore(folder, max_bytes)
    for _ in range(rounds):
        for context_id, token_ids in conversation(seed):
            pages = pages_of(token_ids)
            put(store, pages)
            store.remember(context_id, "", ROOT, token_ids)
            stored(store, pages[::3])
        if max_bytes is None:
            store.prune(context_id=f"chat {seed}")
    store.close()
