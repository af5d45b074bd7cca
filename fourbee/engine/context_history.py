"""What a conversation's tokens were, so that its next turn goes on from them.

A client sends a conversation back as text. Made into tokens again, an answer is often cut another
way than it was sampled, and keys and values from there on would not be found. So the tokens of a
context are remembered, and a prompt that says the same takes them back. Texts are compared by the
bytes of their tokens; a control token is only ever equal to itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

# Contexts remembered in memory, where no store does it.
_MOST_CONTEXTS = 1000


class ContextMemory(Protocol):
    """Token ids of contexts by owner (`context_store.py` is one, on a disk)."""

    def recall(self, context_id: str, namespace: str) -> tuple[int, ...] | None: ...

    def remember(
        self, context_id: str, namespace: str, recipe_digest: bytes, token_ids: Sequence[int]
    ) -> bool: ...


class RecentContexts:
    """Those last used, in memory."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[str, str], tuple[int, ...]] = OrderedDict()

    def recall(self, context_id: str, namespace: str) -> tuple[int, ...] | None:
        return self._contexts.get((namespace, context_id))

    def remember(
        self, context_id: str, namespace: str, recipe_digest: bytes, token_ids: Sequence[int]
    ) -> bool:
        self._contexts[namespace, context_id] = tuple(token_ids)
        self._contexts.move_to_end((namespace, context_id))
        if len(self._contexts) > _MOST_CONTEXTS:
            self._contexts.popitem(last=False)
        return True


Piece = Callable[[int], bytes | None]


def rejoined(known: Sequence[int], prompt: Sequence[int], piece: Piece) -> tuple[int, ...]:
    """The prompt, with the tokens of `known` as far as both say the same.

    `piece` gives a token's bytes; None for a control token, which stands for itself.
    """
    ours, theirs = _symbols(known, piece), _symbols(prompt, piece)
    same = _common(_flat(ours), _flat(theirs))
    ends = {end: index + 1 for index, end in enumerate(_ends(ours)) if end <= same}
    for index, end in reversed(list(enumerate(_ends(theirs)))):
        if end in ends:
            return (*known[: ends[end]], *prompt[index + 1 :])
    return tuple(prompt)


# A token as symbols: its bytes, or one number that no byte is.
_Symbols = list[Sequence[int]]


def _symbols(token_ids: Sequence[int], piece: Piece) -> _Symbols:
    symbols: _Symbols = []
    for token_id in token_ids:
        written = piece(token_id)
        symbols.append((-1 - token_id,) if written is None else written)
    return symbols


def _flat(symbols: _Symbols) -> list[int]:
    return [one for several in symbols for one in several]


def _ends(symbols: _Symbols) -> list[int]:
    return list(accumulate(len(one) for one in symbols))


def _common(one: list[int], other: list[int]) -> int:
    """How far two lists are equal from their beginnings, found by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
