"""Keys and values of all sequences: pages in memory, what of them is shared, and the disk below.

A sequence gets pages as it grows and gives whole ones to the prefix tree as they fill, so that
others share them at once. What it goes on from but does not fill is copied first. No arrays here:
bytes are moved by the storage (`kernels/paged_cache.py`), what is kept on a disk by the store.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Tokens
from functools import partial
from typing import Protocol

from fourbee.engine.page_pool import PageCounts, PagePool
from fourbee.engine.prefix_tree import PAGE_TOKENS, KeyOf, Node, PrefixTree
from fourbee.engine.sequence import DROPPED, Sequence

logger = logging.getLogger(__name__)

# Tails shorter than this are not worth a page.
MIN_TAIL = 8
# Pages that are read from the disk between two steps: others decode meanwhile.
RESTORED_AT_ONCE = 32


class PageStorage(Protocol):
    """What of `KvPages` is needed here."""

    @property
    def pages(self) -> int: ...

    @property
    def page_bytes(self) -> int: ...

    def clear(self, page: int) -> None: ...

    def copy(self, source: int, target: int) -> None: ...

    def read(self, page: int) -> memoryview: ...

    def fill(self, page: int, read_into: Callable[[memoryview], bool]) -> bool: ...


class PageStore(Protocol):
    """Pages on a disk (`context_store.py` is one); nothing of it raises into a request."""

    def has(self, key: bytes) -> bool: ...

    def get_into(self, key: bytes, parent: bytes, token_ids: Tokens[int], page: memoryview) -> bool:
        """Writes the page, verified, into `page`; False where there is none."""
        ...

    def put(
        self, key: bytes, parent: bytes, token_ids: Tokens[int], data: memoryview, namespace: str
    ) -> bool: ...


class KvCache:
    """Pages for sequences: `start`, `reserve` before each step, `commit` after it, `release`."""

    def __init__(
        self,
        storage: PageStorage,
        store: PageStore | None = None,
        key_of: KeyOf = lambda parent, tokens: b"",
    ) -> None:
        self.storage = storage
        self._store = store
        self._pool = PagePool(storage.pages)
        self._tree = PrefixTree(self._pool, key_of, self._save)
        self._namespaces: dict[bytes, str] = {}  # of recipes
        self._unsaved: deque[Node] = deque()

    @property
    def counts(self) -> PageCounts:
        return self._pool.counts

    @property
    def room(self) -> int:
        """Positions that could be had now, by evicting all that nobody uses."""
        counts = self._pool.counts
        return (counts.free + counts.cached) * PAGE_TOKENS

    def start(self, sequence: Sequence) -> None:
        """Gives a sequence the pages of its beginning that are here.

        Its last token is always computed: from that row comes the first answer. Where the prompt's
        tokens are to be scored the rows of all of them are needed.
        """
        assert not sequence.pages and not sequence.nodes
        self._namespaces[sequence.recipe] = sequence.request.namespace
        sequence.computed = 0
        sequence.restoring = False
        if sequence.mode.shares and not sequence.scoring:
            nodes = self._tree.match(sequence.recipe, sequence.token_ids[:-1])
            self._tree.share(nodes)
            sequence.nodes, sequence.pages = nodes, [node.page for node in nodes]
            sequence.computed = len(nodes) * PAGE_TOKENS
            sequence.restoring = self._store is not None
            if not sequence.restoring:
                self._copy_tail(sequence)
        sequence.cached = sequence.computed

    def restore(self, sequence: Sequence) -> None:
        """Reads some more of a sequence's beginning from the disk; ends its `restoring`."""
        assert self._store is not None
        began = time.perf_counter()
        for _ in range(RESTORED_AT_ONCE):
            if not self._restore_page(sequence, self._store):
                sequence.restoring = False
                self._copy_tail(sequence)
                break
        sequence.cached = sequence.computed
        sequence.restore_seconds += time.perf_counter() - began
        if sequence.restored and not sequence.restoring:
            _tell_restored(sequence, self.storage.page_bytes)

    def reserve(self, sequence: Sequence, length: int) -> int:
        """Makes room for `length` positions in all; for how many there is room now."""
        while len(sequence.pages) * PAGE_TOKENS < length:
            page = self._take()
            if page is None:
                break
            self.storage.clear(page)
            sequence.pages.append(page)
        return min(length, len(sequence.pages) * PAGE_TOKENS)

    def commit(self, sequence: Sequence) -> None:
        """After a step: shares the pages that it filled, drops those that are read no more."""
        if not sequence.mode.shares:
            for index in reversed(sequence.mode.droppable(sequence.computed)):
                if sequence.pages[index] == DROPPED:
                    break  # and all before it
                self._pool.drop(sequence.pages[index])
                sequence.pages[index] = DROPPED
            return
        while (len(sequence.nodes) + 1) * PAGE_TOKENS <= sequence.computed:
            index = len(sequence.nodes)
            parent = sequence.nodes[-1] if index else self._tree.root(sequence.recipe)
            tokens = tuple(sequence.token_ids[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS])
            page = sequence.pages[index]
            node = self._tree.insert(parent, tokens, page)
            if node.page != page:  # another computed the same meanwhile
                self._pool.share(node.page)
                self._pool.drop(page)
                sequence.pages[index] = node.page
            elif self._store is not None:
                self._unsaved.append(node)
            sequence.nodes.append(node)

    def release(self, sequence: Sequence, reusable: bool) -> None:
        """Takes a sequence's pages back; `reusable` keeps them for texts that go on from it."""
        whole, tail = len(sequence.nodes), None
        rest = sequence.token_ids[whole * PAGE_TOKENS : sequence.computed]
        if reusable and sequence.mode.shares and len(rest) >= MIN_TAIL:
            parent = sequence.nodes[-1] if whole else self._tree.root(sequence.recipe)
            page = sequence.pages[whole]
            tail = self._tree.insert(parent, tuple(rest), page)
            whole += tail.page == page
        for page in sequence.pages[whole:]:
            if page != DROPPED:
                self._pool.drop(page)
        nodes = sequence.nodes
        self._tree.release([*nodes, tail] if tail and whole > len(nodes) else nodes)
        if not reusable:
            self._tree.discard(nodes)
        sequence.pages, sequence.nodes = [], []

    def waits_for(self, sequence: Sequence, others: Iterable[Sequence]) -> bool:
        """Whether another sequence is just reading more of the same beginning than is here."""
        if not sequence.mode.shares or sequence.scoring:
            return False
        tokens = sequence.token_ids[:-1]
        here = len(self._tree.match(sequence.recipe, tokens))
        begin, end = here * PAGE_TOKENS, (here + 1) * PAGE_TOKENS
        return len(tokens) >= end and any(
            other.recipe == sequence.recipe
            and other.mode.shares
            and other.computed < end <= len(other.token_ids)
            and other.token_ids[begin:end] == tokens[begin:end]
            and other.token_ids[:begin] == tokens[:begin]
            for other in others
        )

    def save_some(self, most: int) -> bool:
        """Writes at most so many pages to the disk; whether there are more."""
        for _ in range(min(most, len(self._unsaved))):
            node = self._unsaved.popleft()
            if node.parent is not None:
                self._save(node)
        return bool(self._unsaved)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Asserts that no page is lost or held twice."""
        held = [page for one in sequences for page in one.pages if page != DROPPED]
        self._pool.check(held, [node.page for node in self._tree.nodes()])

    def _take(self) -> int | None:
        page = self._pool.take()
        while page is None and self._tree.evict():
            page = self._pool.take()
        return page

    def _copy_tail(self, sequence: Sequence) -> None:
        """Goes on from a page that another did not fill, or that goes on otherwise."""
        if sequence.computed % PAGE_TOKENS:
            return
        parent = sequence.nodes[-1] if sequence.nodes else self._tree.root(sequence.recipe)
        tokens = sequence.token_ids[sequence.computed : -1][:PAGE_TOKENS]
        tail, length = self._tree.longest_tail(parent, tokens)
        if tail is None or length < MIN_TAIL:
            return
        # Held while a page is taken: taking may evict.
        self._pool.share(tail.page)
        page = self._take()
        if page is not None:
            self.storage.copy(tail.page, page)
            sequence.pages.append(page)
            sequence.computed += length
        self._tree.release([tail])

    def _restore_page(self, sequence: Sequence, store: PageStore) -> bool:
        index = len(sequence.nodes)
        tokens = tuple(sequence.token_ids[:-1][index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS])
        if len(tokens) < PAGE_TOKENS:
            return False
        parent = sequence.nodes[-1] if index else self._tree.root(sequence.recipe)
        here = parent.children.get(tokens)
        if here is None:
            here = self._read_page(parent, tokens, store)
            if here is None:
                return False
            sequence.restored += PAGE_TOKENS
        else:
            self._pool.share(here.page)
        sequence.nodes.append(here)
        sequence.pages.append(here.page)
        sequence.computed += PAGE_TOKENS
        return True

    def _read_page(self, parent: Node, tokens: tuple[int, ...], store: PageStore) -> Node | None:
        key = self._tree.key_of(parent.key, tokens)
        if not store.has(key):
            return None
        page = self._take()
        if page is None:
            return None
        read_into = partial(store.get_into, key, parent.key, tokens)
        if not self.storage.fill(page, read_into):
            self._pool.drop(page)
            return None
        node = self._tree.insert(parent, tokens, page)
        node.saved = True
        return node

    def _save(self, node: Node) -> None:
        """Writes a page behind, those before it first, if the disk does not have them."""
        if self._store is None or node.saved:
            return
        path = [node]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        namespace = self._namespaces[path.pop().key]
        for one in reversed(path):
            if one.saved:
                continue
            parent = one.parent
            assert parent is not None
            data = self.storage.read(one.page)
            one.saved = self._store.put(one.key, parent.key, one.tokens, data, namespace)
            if not one.saved:
                break


def _tell_restored(sequence: Sequence, page_bytes: int) -> None:
    tokens, seconds = sequence.restored, sequence.restore_seconds
    gigabytes = tokens / PAGE_TOKENS * page_bytes / 1e9
    logger.info(
        "context store: %d of %d prompt tokens came back in %.2f s (%.2f GB, %.1f GB/s)",
        tokens, len(sequence.token_ids), seconds, gigabytes, gigabytes / seconds,
    )  # fmt: skip
