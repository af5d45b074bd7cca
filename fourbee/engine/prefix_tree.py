"""Which pages of keys and values belong to which beginnings of text: a radix tree over pages.

A node is a page of 64 tokens below the pages before it; a root is a recipe, so that nothing is
shared between models, adapters or owners. A page that was not filled hangs below as a tail, to be
copied by whoever goes on from it. What nobody references goes when pages are needed, the longest
unused first and leaves before what they stand on. No arrays here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from fourbee.engine.page_pool import PagePool

# Tokens of a page.
PAGE_TOKENS = 64

Tokens = tuple[int, ...]


class Node:
    """A page in the tree; the root of a recipe has none. `key` is its name on the disk."""

    __slots__ = ("children", "key", "page", "parent", "saved", "stamp", "tails", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens, page: int, key: bytes) -> None:
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.key = key
        self.children: dict[Tokens, Node] = {}
        self.tails: list[Node] = []
        self.stamp = 0  # of its last use
        self.saved = False  # whether the disk has it

    @property
    def is_leaf(self) -> bool:
        return not self.children and not self.tails


KeyOf = Callable[[bytes, Tokens], bytes]


class PrefixTree:
    """Keeps pages of a pool. `on_evict` is told of a full page before it goes."""

    def __init__(
        self,
        pool: PagePool,
        key_of: KeyOf = lambda parent, tokens: b"",
        on_evict: Callable[[Node], None] = lambda node: None,
    ) -> None:
        """`key_of` names a page from its parent's name and its tokens."""
        self._pool = pool
        self.key_of = key_of
        self._on_evict = on_evict
        self._roots: dict[bytes, Node] = {}
        self._clock = count(1)
        # (stamp, number, node): what may go; entries that are no longer true are passed over.
        self._leaves: list[tuple[int, int, Node]] = []
        self._numbers = count()

    def root(self, recipe: bytes) -> Node:
        """The node below which texts of a recipe are."""
        return self._roots.setdefault(recipe, Node(None, (), -1, recipe))

    def match(self, recipe: bytes, tokens: Sequence[int]) -> list[Node]:
        """The nodes of the longest beginning of `tokens` that is here, in whole pages."""
        node, found = self.root(recipe), []
        for begin in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
            child = node.children.get(tuple(tokens[begin : begin + PAGE_TOKENS]))
            if child is None:
                break
            found.append(child)
            node = child
        return found

    def longest_tail(self, node: Node, tokens: Sequence[int]) -> tuple[Node | None, int]:
        """The page below `node` that begins as `tokens` do, and with how many of them."""
        best, most = None, 0
        for one in (*node.tails, *node.children.values()):
            length = _common(one.tokens, tokens)
            if length > most:
                best, most = one, length
        return best, most

    def share(self, nodes: Sequence[Node]) -> None:
        """A sequence references these pages, too."""
        stamp = next(self._clock)
        for node in nodes:
            self._pool.share(node.page)
            node.stamp = stamp

    def insert(self, parent: Node, tokens: Tokens, page: int) -> Node:
        """The node of a page, which its caller references; another's page where it is here already.

        The tree keeps the page. Tails that it goes on from go.
        """
        if len(tokens) == PAGE_TOKENS:
            here = parent.children.get(tokens)
        else:
            here = next((tail for tail in parent.tails if tail.tokens == tokens), None)
        if here is not None:
            return here
        key = self.key_of(parent.key, tokens) if len(tokens) == PAGE_TOKENS else b""
        node = Node(parent, tokens, page, key)
        for tail in [one for one in parent.tails if tokens[: len(one.tokens)] == one.tokens]:
            self._remove(tail)
        if len(tokens) == PAGE_TOKENS:
            parent.children[tokens] = node
        else:
            parent.tails.append(node)
        self._pool.keep(page)
        node.stamp = next(self._clock)
        return node

    def release(self, nodes: Sequence[Node]) -> None:
        """A sequence lets go of these pages; they stay until somebody needs the room."""
        stamp = next(self._clock)
        for node in nodes:
            self._pool.drop(node.page)
            node.stamp = stamp
        for node in nodes[-1:]:
            self._offer(node)

    def discard(self, nodes: Sequence[Node]) -> None:
        """Removes those of a path that nobody references and nothing stands on."""
        for node in reversed(nodes):
            if not node.is_leaf or self._pool.referenced(node.page):
                break
            self._remove(node)

    def evict(self) -> bool:
        """Frees the page that is unused for longest; False when there is none."""
        while self._leaves:
            stamp, _, node = heapq.heappop(self._leaves)
            if stamp == node.stamp and self._may_go(node):
                if len(node.tokens) == PAGE_TOKENS:
                    self._on_evict(node)
                self._remove(node)
                return True
        return False

    def nodes(self) -> list[Node]:
        """All pages that the tree keeps."""
        found, todo = [], list(self._roots.values())
        while todo:
            node = todo.pop()
            below = [*node.children.values(), *node.tails]
            found += below
            todo += below
        return found

    def _may_go(self, node: Node) -> bool:
        return node.parent is not None and node.is_leaf and not self._pool.referenced(node.page)

    def _offer(self, node: Node) -> None:
        if self._may_go(node):
            heapq.heappush(self._leaves, (node.stamp, next(self._numbers), node))

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None and node.is_leaf
        if len(node.tokens) == PAGE_TOKENS:
            del parent.children[node.tokens]
        else:
            parent.tails.remove(node)
        node.parent = None
        self._pool.forget(node.page)
        self._offer(parent)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginnings."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
