"""How sure a share of right answers is: 95% intervals, aware of samples that share a template."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964


@dataclass(frozen=True)
class Share:
    """`right` of `total`, and the 95% interval of the true share."""

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.total}"


def wilson(right: int, total: int) -> Share:
    """Wilson's (1927) score interval: for independent samples."""
    share, z2 = right / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    half = _Z * spread / (1 + z2 / total)
    return Share(right, total, max(0.0, centre - half), min(1.0, centre + half))


def clustered(clusters: Sequence[Sequence[bool]], rounds: int = 2000, seed: int = 0) -> Share:
    """A percentile bootstrap that draws whole clusters (templates) with replacement."""
    sums = [(sum(cluster), len(cluster)) for cluster in clusters]
    rng = random.Random(seed)
    shares = []
    for _ in range(rounds):
        drawn = rng.choices(sums, k=len(sums))
        shares.append(sum(right for right, _ in drawn) / sum(count for _, count in drawn))
    shares.sort()
    right, total = sum(r for r, _ in sums), sum(n for _, n in sums)
    return Share(right, total, shares[int(0.025 * rounds)], shares[int(0.975 * rounds)])
