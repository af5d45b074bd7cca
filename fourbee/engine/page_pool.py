"""Whose the pages of keys and values are: free, referenced by sequences, or cached.

Numbers only, no memory: `free + referenced + cached == total` at any time. A page may be referenced
by several sequences and be kept by the prefix tree at once; it is cached when only the tree has it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageCounts:
    """How many pages are in which state."""

    free: int
    referenced: int
    cached: int

    @property
    def total(self) -> int:
        return self.free + self.referenced + self.cached


class PagePool:
    """Pages `0` to `total - 1`."""

    def __init__(self, total: int) -> None:
        assert total >= 1
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._kept = [False] * total
        self._num_cached = 0

    @property
    def counts(self) -> PageCounts:
        free, cached = len(self._free), self._num_cached
        return PageCounts(free, self.total - free - cached, cached)

    def take(self) -> int | None:
        """A free page, referenced once; None when there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more reference to a page that is referenced or cached."""
        assert self._references[page] or self._kept[page], "a free page is nobody's to share"
        self._num_cached -= self._references[page] == 0
        self._references[page] += 1

    def drop(self, page: int) -> None:
        """One reference less; without any, the page is cached if it is kept, else free."""
        assert self._references[page] > 0
        self._references[page] -= 1
        if self._references[page] == 0:
            self._settle(page)

    def keep(self, page: int) -> None:
        """The tree has the page from now on, which somebody references."""
        assert self._references[page] and not self._kept[page]
        self._kept[page] = True

    def forget(self, page: int) -> None:
        """The tree has it no more."""
        assert self._kept[page]
        self._kept[page] = False
        if self._references[page] == 0:
            self._num_cached -= 1
            self._free.append(page)

    def referenced(self, page: int) -> bool:
        return self._references[page] > 0

    def check(self, held: list[int], kept: list[int]) -> None:
        """Asserts that the books agree with the pages that sequences hold and the tree keeps."""
        references = [0] * self.total
        for page in held:
            references[page] += 1
        assert references == self._references
        assert sorted(kept) == [page for page in range(self.total) if self._kept[page]]
        assert sorted(self._free) == [
            page for page in range(self.total) if not references[page] and not self._kept[page]
        ]
        assert self.counts.total == self.total

    def _settle(self, page: int) -> None:
        if self._kept[page]:
            self._num_cached += 1
        else:
            self._free.append(page)
