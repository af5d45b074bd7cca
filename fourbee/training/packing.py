"""Pieces of samples side by side: which go into an update, and how an update becomes packs.

No padding and nothing dropped. An update is filled from the pieces drawn next: in their order as
long as they fit, its last few chosen so that it is as full as can be (an exact subset sum over a
bounded look-ahead). What was passed over comes first in the next update. Not here: what is drawn
(`deck.py`, `mixture.py`) and the plan of a run (`run_plan.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fourbee.training.corpus import Corpus
from fourbee.training.samples import Document

# How many pieces are looked at to fill the end of an update, and how many of those in order are
# open to exchange: five of a hundred fill nearly any gap.
_LOOK_AHEAD = 128
_EXCHANGED = 4
# An update leaves about this part of itself free, without which it seldom divides into full packs.
_SPARE = 256

T = TypeVar("T")


class Piece(NamedTuple):
    """Tokens `first:stop` of a sample: all of them, or a part of a text that had to be cut."""

    corpus: int
    sample: int
    first: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Pack:
    """Whole documents side by side: T tokens, to be attended document by document, no padding."""

    ids: npt.NDArray[np.int64]  # [T]
    positions: npt.NDArray[np.int64]  # [T], from 0 in each document
    learned: npt.NDArray[np.bool_]  # [T]: this token is a target (never a document's first)
    lengths: tuple[int, ...]  # tokens of each document
    documents: tuple[int, ...]  # of each document: index into the samples of its update

    @property
    def num_targets(self) -> int:
        return int(self.learned.sum())


def cut(tokens: int, longest: int, offset: int) -> list[tuple[int, int]]:
    """Spans `(first, stop)` of at most `longest` >= 2 tokens over a text of `tokens`.

    Neighbours share one token, so that every token but the text's first is a target exactly once.
    The first span of a text that has to be cut holds 1 + offset % (longest - 1) targets.
    """
    if tokens <= longest:
        return [(0, tokens)]
    targets = longest - 1
    ends = [*range(1 + offset % targets, tokens - 1, targets), tokens - 1]
    return [(start, end + 1) for start, end in zip([0, *ends], ends, strict=False)]


def best_subset(lengths: Sequence[int], capacity: int, spare: int = 0) -> list[int]:
    """Indices of the lengths whose sum is the largest that is no more than `capacity`.

    Of several such sets the one with the earliest. Where one leaves between `spare` and twice as
    much free, the fullest of these. Exact: sums are bits of a number, one shift a length.
    """
    fitting = (1 << capacity + 1) - 1
    reachable = [1]  # [i]: bit s is set if the last i lengths can sum to s
    for length in reversed(lengths):
        reachable.append((reachable[-1] | reachable[-1] << length) & fitting)
    left = (reachable[-1] & fitting >> spare).bit_length() - 1
    if left < max(0, capacity - 2 * spare):
        left = reachable[-1].bit_length() - 1
    chosen = []
    for index, length in enumerate(lengths):
        if length <= left and reachable[len(lengths) - index - 1] >> (left - length) & 1:
            chosen.append(index)
            left -= length
    return chosen


def take_update(
    ahead: list[Piece], drawn: Iterator[Piece], capacity: int, corpora: Sequence[Corpus]
) -> list[Piece]:
    """Removes from `ahead`, which is refilled from `drawn`, the pieces of the next update.

    The oldest piece is always taken, also when it alone is more than `capacity`. A gap of more
    than 1% is filled with the beginning of a text, whose rest stays. Empty when nothing is left.
    """
    chosen = _fill(ahead, drawn, capacity, capacity // _SPARE)
    taken = [ahead[index] for index in chosen]
    gap = capacity - sum(piece.tokens for piece in taken)
    left = _without(ahead, chosen)
    if gap > max(1, capacity // 100):
        for index, piece in enumerate(left[:_LOOK_AHEAD]):
            if piece.tokens > gap and corpora[piece.corpus].cuttable[piece.sample]:
                taken.append(piece._replace(stop=piece.first + gap))
                left[index] = piece._replace(first=piece.first + gap - 1)
                break
    ahead[:] = left
    return taken


def make_packs(
    corpora: Sequence[Corpus], pieces: Sequence[Piece], tokens_per_pack: int
) -> list[Pack]:
    """The pieces of an update as packs of at most `tokens_per_pack` tokens.

    `Pack.documents` are indices into `pieces`; the two documents of a pair stay together, the
    chosen one first.
    """
    packs = []
    # The longest first: short ones fit in anywhere.
    left = sorted(range(len(pieces)), key=lambda index: -pieces[index].tokens)
    while left:
        waiting = [pieces[index] for index in left]
        chosen = _fill(waiting, iter(()), tokens_per_pack)
        packs.append(_make_pack(corpora, pieces, [left[index] for index in chosen]))
        left = _without(left, chosen)
    return packs


def whole_samples(corpora: Sequence[Corpus]) -> list[Piece]:
    """Every sample, uncut."""
    return [
        Piece(number, sample, 0, corpus.tokens(sample))
        for number, corpus in enumerate(corpora)
        for sample in range(len(corpus))
    ]


def pack_documents(documents: Sequence[Document], tokens_per_pack: int) -> list[Pack]:
    """Documents that are in no corpus as packs; those of like lengths, which are quick together.

    `Pack.documents` are indices into `documents`.
    """
    packs: list[Pack] = []
    order = sorted(range(len(documents)), key=lambda index: len(documents[index][0]))
    while order:
        filled = count = 0
        while count < len(order):
            filled += len(documents[order[count]][0])
            if count and filled > tokens_per_pack:
                break
            count += 1
        chosen, order = order[:count], order[count:]
        ids = [np.array(documents[index][0], np.int64) for index in chosen]
        learned = [np.array(documents[index][1], np.bool_) for index in chosen]
        packs.append(_join(ids, learned, chosen))
    return packs


def _fill(ahead: list[Piece], drawn: Iterator[Piece], capacity: int, spare: int = 0) -> list[int]:
    """Indices of the pieces of `ahead` that fill `capacity`, the first always among them."""
    used = count = 0
    while True:
        if count == len(ahead):
            ahead.extend(islice(drawn, _LOOK_AHEAD))
        if count == len(ahead) or (count and used + ahead[count].tokens > capacity):
            break
        used += ahead[count].tokens
        count += 1
    if used >= capacity - spare:
        return list(range(count))
    kept = min(count, max(1, count - _EXCHANGED))
    ahead.extend(islice(drawn, max(0, kept + _LOOK_AHEAD - len(ahead))))
    gap = capacity - sum(piece.tokens for piece in ahead[:kept])
    window = [piece.tokens for piece in ahead[kept : kept + _LOOK_AHEAD]]
    return [*range(kept), *(kept + index for index in best_subset(window, gap, spare))]


def _without(items: list[T], indices: Sequence[int]) -> list[T]:
    gone = set(indices)
    return [item for index, item in enumerate(items) if index not in gone]


def _make_pack(corpora: Sequence[Corpus], pieces: Sequence[Piece], indices: Sequence[int]) -> Pack:
    ids, learned, documents = [], [], []
    for index in indices:
        piece = pieces[index]
        for span in corpora[piece.corpus].spans(piece.sample, piece.first, piece.stop):
            ids.append(corpora[piece.corpus].ids[span])
            learned.append(np.array(corpora[piece.corpus].learned[span]))
            documents.append(index)
    return _join(ids, learned, documents)


def _join(
    ids: Sequence[npt.NDArray[Any]],
    learned: Sequence[npt.NDArray[np.bool_]],
    documents: Sequence[int],
) -> Pack:
    """Documents side by side; nothing predicts the first token of one."""
    for mask in learned:
        mask[0] = False
    lengths = tuple(len(one) for one in ids)
    return Pack(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        learned=np.concatenate(learned),
        lengths=lengths,
        documents=tuple(documents),
    )
