"""The samples of one or more corpora as a deck of cards: drawn without putting back, then shuffled.

A sample that is too hard or too long for now is set aside and comes back as soon as it is not.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence

import numpy as np

from fourbee.foundation.errors import TrainingError
from fourbee.training.corpus import Corpus
from fourbee.training.packing import Piece, cut

Sample = tuple[int, int]  # corpus, sample in it


class Deck:
    """Draws every sample once a round. The same arguments and draws give the same pieces.

    Texts of more than `longest` tokens are cut, at other places in every round. Without `shuffle`
    samples come as their files have them.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        members: Iterable[int],
        longest: int,
        seed: str,
        shuffle: bool,
    ) -> None:
        self._corpora = corpora
        self._longest = longest
        self._random = random.Random(seed)  # a string seed is hashed alike everywhere
        self._shuffle = shuffle
        self._drawn = [(one, sample) for one in members for sample in range(len(corpora[one]))]
        self._difficulty = {one: _ranks(corpora[one]) for one in members}
        self._cards: list[Piece] = []  # the next is the last
        self._left: dict[Sample, int] = {}  # pieces of a cut text that are still to be drawn
        self._too_hard: list[tuple[float, Piece]] = []  # heaps: the first to come back on top
        self._too_long: list[tuple[float, Piece]] = []

    def draw(self, difficulty: float = 1.0, length: float = math.inf) -> Piece:
        """The next piece among the easiest fraction `difficulty` of each corpus.

        Conversations and pairs of more than `length` tokens wait. TrainingError if all have to.
        """
        self._bring_back(self._too_hard, difficulty)
        self._bring_back(self._too_long, length)
        while True:
            if not self._cards:
                self._next_round(length)
            card = self._cards.pop()
            rank = self._difficulty[card.corpus][card.sample]
            if rank > difficulty:
                heapq.heappush(self._too_hard, (rank, card))
            elif card.tokens > length and not self._corpora[card.corpus].cuttable[card.sample]:
                heapq.heappush(self._too_long, (card.tokens, card))
            else:
                self._count(card)
                return card

    def _next_round(self, length: float) -> None:
        if not self._drawn:
            raise TrainingError(f"curriculum: no sample has at most length = {length:.0f} tokens")
        samples, self._drawn = sorted(self._drawn, reverse=True), []
        for corpus, sample in samples:
            tokens = self._corpora[corpus].tokens(sample)
            spans = [(0, tokens)]
            if tokens > self._longest and self._corpora[corpus].cuttable[sample]:
                spans = cut(tokens, self._longest, self._random.getrandbits(32))
                self._left[corpus, sample] = len(spans)
            self._cards += [Piece(corpus, sample, *span) for span in reversed(spans)]
        if self._shuffle:
            for index in range(len(self._cards) - 1, 0, -1):
                self._exchange(index)

    def _bring_back(
        self, heap: list[Any], limit: float
    ) -> None:
        while heap and heap[0][0] <= limit:
            _, card = heapq.heappop(heap)
            self._cards.append(card)
            if self._shuffle:
                self._exchange(len(self._cards) - 1)

    def _exchange(self, index: int) -> None:
        """Puts the card at a random place below; `random()` alone is the same in every Python."""
        other = int(self._random.random() * (index + 1))
        self._cards[index], self._cards[other] = self._cards[other], self._cards[index]

    def _count(self, card: Piece) -> None:
        """A sample is back in the deck for the next round when all of its pieces are drawn."""
        sample = card.corpus, card.sample
        left = self._left.get(sample, 1) - 1
        if left:
            self._left[sample] = left
        else:
            self._left.pop(sample, None)
            self._drawn.append(sample)


def _ranks(corpus: Corpus) -> list[float]:
    """Of each sample: which fraction of the corpus, the easiest first, reaches to it.

    The easiest is 0, so that some sample is easy enough for any difficulty.
    """
    ranks = np.empty(len(corpus))
    ranks[np.argsort(corpus.difficulty, kind="stable")] = np.arange(1, len(corpus) + 1)
    ranks[ranks == 1] = 0
    return list(ranks / len(corpus))
