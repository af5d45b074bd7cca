"""Which pieces of which samples every update of a run learns from: a pure function of its inputs.

Pieces are drawn by mixture and curriculum, and packed into updates. The plan holds numbers only;
the tokens of an update are read from the corpora when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.training.checks import at_least
from fourbee.training.corpus import Corpus
from fourbee.training.curriculum import Curriculum, CurriculumPoint
from fourbee.training.deck import Deck
from fourbee.training.mixture import Balance, Mixture
from fourbee.training.packing import Pack, Piece, cut, make_packs, take_update
from fourbee.training.sources import Source, Told

_BUDGETS = ("epochs", "updates", "tokens")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data of a run; one of epochs, updates and tokens says how much of it, else one epoch."""

    data: tuple[Source, ...] = ()
    mixture: Mixture | None = None  # None: all sources together, as large as they are
    curriculum: tuple[CurriculumPoint, ...] = ()
    epochs: int | None = None  # so many times the tokens of all sources
    updates: int | None = None
    tokens: int | None = None
    tokens_per_update: int = 4096
    tokens_per_pack: int = 4096  # in memory at once; changes nothing but where longer texts are cut
    long_samples: Literal["refuse", "skip"] = "refuse"  # what is no plain text and fits nowhere
    shuffle: bool = True
    workers: int = 1  # processes that tokenise

    def __post_init__(self) -> None:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: expected only one of {', '.join(_BUDGETS)}")
        at_least(1, self, *given, "workers")
        at_least(2, self, "tokens_per_update", "tokens_per_pack")
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

    def drawn(self) -> list[Piece]:
        """Each piece that some update learns from, once."""
        return [Piece(*row) for row in np.unique(self.pieces, axis=0).tolist()]

    def packs(self, update: int) -> list[Pack]:
        """The packs of an update."""
        return make_packs(self.corpora, self.samples(update), self.tokens_per_pack)

    def tokens(self, update: int) -> int:
        """Tokens of an update."""
        return sum(piece.tokens for piece in self.samples(update))


def plan_run(
    corpora: Sequence[Corpus], settings: DataSettings, seed: int, positions: int | None = None
) -> RunPlan:
    """The plan of a run over `corpora`, one for each source, that depends on its arguments alone.

    The corpora are those of `fitting`. `positions`: what the model has; longer texts are cut.
    """
    curriculum = Curriculum(settings.curriculum)
    total = _budget(corpora, settings, curriculum)
    longest = min(settings.tokens_per_pack, positions or settings.tokens_per_pack)
    drawn = iter(_Drawing(corpora, settings, curriculum, seed, longest, total))
    ahead: list[Piece] = []
    pieces: list[Piece] = []
    offsets = [0]
    packed = 0
    while settings.updates is None or len(offsets) <= settings.updates:
        size = curriculum.tokens_per_update.at(packed / total, settings.tokens_per_update)
        taken = take_update(ahead, drawn, round(size), corpora)
        if not taken:
            break
        pieces += taken
        offsets.append(len(pieces))
        packed += sum(piece.tokens for piece in taken)
    return RunPlan(
        tuple(corpora),
        settings.tokens_per_pack,
        np.array(pieces, np.int64),
        np.array(offsets, np.int64),
    )


class _Drawing:
    """The pieces of a run in their order, until its tokens are drawn; without end for updates."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        settings: DataSettings,
        curriculum: Curriculum,
        seed: int,
        longest: int,
        total: float,
    ) -> None:
        self.corpora, self.sources, self.curriculum = corpora, settings.data, curriculum
        self.total = math.inf if settings.updates is not None else total
        self.scale = total
        self.mixture = settings.mixture or Mixture()
        self.counts = [len(corpus.ids) for corpus in corpora]
        uneven = len({source.weight for source in self.sources}) > 1
        self.mixed = bool(settings.mixture or curriculum.shares or uneven)
        # What curriculum makes shorter is cut when it is drawn.
        lengths = curriculum.length.values or [longest]
        sizes = curriculum.tokens_per_update.values or [settings.tokens_per_update]
        self.longest = round(min(longest, max(lengths), max(sizes)))
        every = list(range(len(corpora)))
        self.decks = [
            Deck(corpora, members, self.longest, f"{seed}:{number}", settings.shuffle)
            for number, members in enumerate([[one] for one in every] if self.mixed else [every])
        ]

    def __iter__(self) -> Iterator[Piece]:
        balance = Balance(len(self.decks))
        tokens = 0
        while tokens < self.total:
            place = min(1.0, tokens / self.scale)
            shares = self._shares(place)
            turn = balance.next(shares)
            length = self.curriculum.length.at(place, math.inf)
            piece = self.decks[turn].draw(self.curriculum.difficulty.at(place, 1.0), length)
            # The token that two pieces share is counted once.
            count = piece.tokens - (piece.first > 0)
            tokens += count
            balance.add(turn, count, shares)
            if self.corpora[piece.corpus].cuttable[piece.sample]:
                for first, stop in cut(piece.tokens, int(min(length, self.longest)), -1):
                    yield piece._replace(first=piece.first + first, stop=piece.first + stop)
            else:
                yield piece

    def _shares(self, place: float) -> Sequence[float]:
        """Of each deck."""
        if not self.mixed:
            return [1.0]
        if not self.curriculum.shares:
            return self._constant_shares
        groups = {name: one.at(place, 0.0) for name, one in self.curriculum.shares.items()}
        return self.mixture.of_sources(self.sources, self.counts, groups)

    @cached_property
    def _constant_shares(self) -> list[float]:
        return self.mixture.of_sources(self.sources, self.counts)


def _budget(corpora: Sequence[Corpus], settings: DataSettings, curriculum: Curriculum) -> float:
    """Tokens of the run; where its updates are what is given, about as many as they will have."""
    if settings.tokens is not None:
        return settings.tokens
    if settings.updates is None:
        return (settings.epochs or 1) * sum(len(corpus.ids) for corpus in corpora)
    places = np.linspace(0.0, 1.0, 1001)
    sizes = [curriculum.tokens_per_update.at(p, settings.tokens_per_update) for p in places]
    # Of T tokens, dT / size are an update.
    return settings.updates / float(np.mean(1 / np.array(sizes)))


def fitting(
    corpora: Sequence[Corpus], settings: DataSettings, positions: int, told: Told
) -> tuple[Corpus, ...]:
    """The corpora without conversations and pairs that are too long to be learned from.

    They are longer than a pack, than the positions, or than a curriculum ever allows.
    `told` hears how many are left out. TrainingError naming the first, where the settings refuse
    them, and where none would be left.
    """
    return tuple(_fitting(corpus, settings, positions, told) for corpus in corpora)


def _fitting(corpus: Corpus, settings: DataSettings, positions: int, told: Told) -> Corpus:
    size = settings.tokens_per_pack
    whole, longest = corpus.sample_tokens, corpus.lengths.reshape(-1, corpus.parts).max(axis=1)
    limits = [("tokens_per_pack", size, whole), ("the model's positions", positions, longest)]
    if lengths := Curriculum(settings.curriculum).length.values:
        limits.append(("the longest curriculum.length", int(max(lengths)), whole))
    too_long = ~corpus.cuttable & np.any([of > limit for _, limit, of in limits], axis=0)
    if not (count := int(too_long.sum())):
        return corpus
    if settings.long_samples == "skip" and count < len(corpus):
        shown = " or ".join(f"{name} = {limit}" for name, limit, _ in limits)
        told(
            f"{corpus.source.path}: {count} samples left out that are longer than {shown}, "
            "as long_samples = 'skip' says"
        )
        return corpus.only(np.flatnonzero(~too_long))
    first = int(np.flatnonzero(too_long)[0])
    name, limit, tokens = next(
        (name, limit, of[first]) for name, limit, of in limits if of[first] > limit
    )
    more = f" ({count} such samples; long_samples = 'skip' leaves them out)" if count > 1 else ""
    raise TrainingError(
        f"{corpus.where(first)}: {tokens} tokens, more than {name} = {limit}, and only plain texts "
        f"may be cut{more}"
    )
