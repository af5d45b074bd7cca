"""How much of each source a run sees: shares of tokens that hold at every moment of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import nearest
from fourbee.training.checks import expect
from fourbee.training.curriculum import check_shares
from fourbee.training.sources import Source


@dataclass(frozen=True)
class Mixture:
    """Shares of groups of sources; what a group lacks in tokens it gives again.

    The share of a group is proportional to tokens ** exponent * weight, or as `shares` says. An
    exponent below 1 gives small languages more (XLM, Lample & Conneau 2019, section 3.1, with 0.5;
    XLM-R, Conneau et al. 2020, with 0.3). Within a group a source has tokens * weight.
    """

    by: Literal["source", "language", "domain"] = "source"
    exponent: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(abs(self.exponent) <= 10, "exponent", self.exponent, "-10 to 10")
        check_shares("mixture", self.shares)

    def groups(self, sources: Sequence[Source]) -> list[str]:
        """The group of each source; a source's own is its name (its path where two are alike)."""
        if self.by == "source":
            names = Counter(source.name for source in sources)
            return [one.name if names[one.name] == 1 else str(one.path) for one in sources]
        for source in sources:
            if not getattr(source, self.by):
                raise UsageError(f"mixture.by = {self.by!r}, but {source.path} has no {self.by}")
        return [str(getattr(source, self.by)) for source in sources]

    def of_sources(
        self,
        sources: Sequence[Source],
        tokens: Sequence[int],
        shares: Mapping[str, float] | None = None,
    ) -> list[float]:
        """The share of each source, summing to 1; `shares` of groups instead of the mixture's own.

        UsageError for shares of unknown groups, for groups without one, and for nothing at all.
        """
        groups = self.groups(sources)
        shares = shares or self.shares
        for name in shares:
            if name not in groups:
                known = ", ".join(dict.fromkeys(groups))
                raise UsageError(
                    f"shares: no {self.by} {name!r}{nearest(name, groups)}; known: {known}"
                )
        for name in groups:
            if shares and name not in shares:
                raise UsageError(f"shares: none for {self.by} {name!r}; 0 leaves it out")
        sizes: Counter[str] = Counter()
        weighted: dict[str, float] = dict.fromkeys(groups, 0.0)
        for group, source, count in zip(groups, sources, tokens, strict=True):
            sizes[group] += count
            weighted[group] += count * source.weight
        natural = {g: sizes[g] ** self.exponent * weighted[g] / sizes[g] for g in weighted}
        wanted = shares or natural
        total = sum(wanted.values())
        if total <= 0:
            raise UsageError("shares: all are 0")
        return [
            wanted[group] / total * count * source.weight / (weighted[group] or 1.0)
            for group, source, count in zip(groups, sources, tokens, strict=True)
        ]


class Balance:
    """Whose turn it is: the one that lacks most tokens of its share."""

    def __init__(self, count: int) -> None:
        self._owed = [0.0] * count

    def next(self, shares: Sequence[float]) -> int:
        """The index of the largest debt; of equal ones that of the largest share."""
        open_ones = [index for index, share in enumerate(shares) if share > 0]
        return max(open_ones, key=lambda index: (self._owed[index], shares[index]))

    def add(self, index: int, tokens: int, shares: Sequence[float]) -> None:
        """Notes that `index` gave so many tokens, of which each was owed its share."""
        for other, share in enumerate(shares):
            self._owed[other] += share * tokens
        self._owed[index] -= tokens
