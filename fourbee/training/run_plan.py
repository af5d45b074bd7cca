"""Which pieces of which samples every update of a run learns from: a pure function of its inputs.

Pieces are drawn by mixture and curriculum, and packed into updates. The plan holds numbers only;
the tokens of an update are read from the corpora when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.training.corpus import Corpus
from fourbee.training.curriculum import Curriculum, CurriculumPoint
from fourbee.training.deck import Deck
from fourbee.training.mixture import Balance, Mixture
from fourbee.training.packing import Pack, Piece, cut, make_packs, take_update
from fourbee.training.sources import Source

_BUDGETS = ("epochs", "updates", "tokens")


@dataclass(frozen=True)
class DataSettings:
    """The data of a run; exactly one of epochs, updates and tokens says how much of it."""

    sources: tuple[Source, ...]
    mixture: Mixture | None = None  # None: all sources together, as large as they are
    curriculum: tuple[CurriculumPoint, ...] = ()
    epochs: int | None = None  # so many times the tokens of all sources
    updates: int | None = None
    tokens: int | None = None
    tokens_per_update: int = 4096
    tokens_per_pack: int = 4096  # in memory at once; which samples an update has depends not on it
    shuffle: bool = True
    workers: int = 1  # processes that tokenise

    def __post_init__(self) -> None:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"expected exactly one of epochs, updates, tokens; given: {', '.join(given) or 'none'}"
            )
        for name, least in ((given[0], 1), ("tokens_per_update", 2), ("tokens_per_pack", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)}: expected at least {least}")
        Curriculum(self.curriculum)


@dataclass(frozen=True)
class RunPlan:
    """The updates of a run: `len(plan)` of them, each a list of pieces."""

    corpora: tuple[Corpus, ...]
    tokens_per_pack: int
    pieces: npt.NDArray[np.int64]  # [pieces, 4]: the fields of Piece
    offsets: npt.NDArray[np.int64]  # [updates + 1]: update n has pieces offsets[n]:offsets[n + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def samples(self, update: int) -> list[Piece]:
        """The pieces of an update; `Pack.documents` are indices into them."""
        rows = self.pieces[self.offsets[update] : self.offsets[update + 1]]
        return [Piece(*row) for row in rows.tolist()]

    def packs(self, update: int, rank: int = 0, world: int = 1) -> list[Pack]:
        """The packs that process `rank` of `world` works on; none where there are too few."""
        packs = make_packs(self.corpora, self.samples(update), self.tokens_per_pack)
        return packs[rank::world]

    def tokens(self, update: int) -> int:
        """Tokens of an update, of all processes together."""
        return sum(piece.tokens for piece in self.samples(update))


def plan_run(
    corpora: Sequence[Corpus], settings: DataSettings, seed: int, positions: int | None = None
) -> RunPlan:
    """The plan of a run over `corpora`, one for each source, that depends on its arguments alone.

    `positions`: what the model has. TrainingError, naming the line, for a conversation or pair
    that is longer than a pack or the positions; a plain text is cut.
    """
    curriculum = Curriculum(settings.curriculum)
    total, updates = _budget(corpora, settings, curriculum)
    longest = min(settings.tokens_per_pack, positions or settings.tokens_per_pack)
    _refuse_long(corpora, settings.tokens_per_pack, positions)
    endless = updates is not None
    drawn = _draw(corpora, settings, curriculum, seed, longest, total, endless)
    ahead: list[Piece] = []
    rows: list[Piece] = []
    offsets = [0]
    packed = 0
    while updates is None or len(offsets) <= updates:
        size = curriculum.tokens_per_update.at(packed / total, settings.tokens_per_update)
        pieces = take_update(ahead, drawn, round(size), corpora)
        if not pieces:
            break
        rows += pieces
        offsets.append(len(rows))
        packed += sum(piece.tokens for piece in pieces)
    return RunPlan(
        tuple(corpora),
        settings.tokens_per_pack,
        np.array(rows, np.int64).reshape(-1, 4),
        np.array(offsets, np.int64),
    )


def _draw(
    corpora: Sequence[Corpus],
    settings: DataSettings,
    curriculum: Curriculum,
    seed: int,
    longest: int,
    total: float,
    endless: bool,
) -> Iterator[Piece]:
    """Pieces in the order of the run, until `total` tokens are drawn."""
    longest = min(longest, round(max(curriculum.length.values, default=longest)))
    sizes = max(curriculum.tokens_per_update.values, default=settings.tokens_per_update)
    longest = max(2, min(longest, round(sizes)))
    mixed = settings.mixture or curriculum.shares or len({s.weight for s in settings.sources}) > 1
    members = [[one] for one in range(len(corpora))] if mixed else [list(range(len(corpora)))]
    decks = [
        Deck(corpora, group, longest, f"{seed}:{number}", settings.shuffle)
        for number, group in enumerate(members)
    ]
    mixture = settings.mixture or Mixture()
    counts = [len(corpus.ids) for corpus in corpora]
    shares = mixture.of_sources(settings.sources, counts) if mixed else [1.0]
    balance = Balance(len(decks))
    tokens = 0
    while endless or tokens < total:
        place = min(1.0, tokens / total)
        if curriculum.shares:
            groups = {name: one.at(place, 0.0) for name, one in curriculum.shares.items()}
            shares = mixture.of_sources(settings.sources, counts, groups)
        turn = balance.next(shares) if mixed else 0
        difficulty = curriculum.difficulty.at(place, 1.0)
        length = round(curriculum.length.at(place, longest))
        piece = decks[turn].draw(
            difficulty, max(length, 2) if curriculum.length.places else math.inf
        )
        # The token that two pieces share is counted once.
        count = piece.tokens - (piece.first > 0)
        tokens += count
        balance.add(turn, count, shares)
        if corpora[piece.corpus].cuttable[piece.sample]:
            for first, stop in cut(piece.tokens, min(length, longest), -1):
                yield piece._replace(first=piece.first + first, stop=piece.first + stop)
        else:
            yield piece


def _budget(
    corpora: Sequence[Corpus], settings: DataSettings, curriculum: Curriculum
) -> tuple[float, int | None]:
    """Tokens of the run, and its updates where they are what is given."""
    if settings.tokens is not None:
        return settings.tokens, None
    if settings.epochs is not None:
        return settings.epochs * sum(len(corpus.ids) for corpus in corpora), None
    assert settings.updates is not None
    places = np.linspace(0.0, 1.0, 1001)
    sizes = [curriculum.tokens_per_update.at(p, settings.tokens_per_update) for p in places]
    # Of T tokens, dT / size are an update.
    return settings.updates / float(np.mean(1 / np.array(sizes))), settings.updates


def _refuse_long(corpora: Sequence[Corpus], tokens_per_pack: int, positions: int | None) -> None:
    for corpus in corpora:
        whole = ~corpus.cuttable
        limits = [("tokens_per_pack", tokens_per_pack, corpus.sample_tokens)]
        if positions is not None:
            longest = np.maximum.reduceat(
                corpus.lengths, np.arange(0, len(corpus.lengths), corpus.parts)
            )
            limits.append(("the model's positions", positions, longest))
        for name, limit, tokens in limits:
            found = np.flatnonzero(whole & (tokens > limit))
            if len(found):
                raise TrainingError(
                    f"{corpus.where(int(found[0]))}: {tokens[found[0]]} tokens, more than {name} = "
                    f"{limit}, and only plain texts may be cut"
                    + (f" ({len(found)} such samples)" if len(found) > 1 else "")
                )
