"""Sizes in bytes and spans of time, as people write and read them.

KB, MB, GB and TB are powers of 1000 (K, M, G, T too), KiB to TiB powers of 1024. Not here: whether
a size makes sense for what it is given to.
"""

from __future__ import annotations

import re
from fractions import Fraction

from fourbee.foundation.errors import UsageError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(
    r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(?:([KMGT]?)(I?)B|([KMGT]?))\s*", re.IGNORECASE
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhdw])\s*", re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Bytes, rounded down: "20GB", "1.5 GiB", "512m", "4096". Else UsageError of one line."""
    found = _SIZE.fullmatch(text)
    if not found or (found[3] and not found[2]):
        raise UsageError(
            f"{option} {text}: expected a size such as 20GB, 512MiB or a number of bytes", option
        )
    unit = (found[2] or found[4] or "").upper()
    return int(Fraction(found[1]) * (1024 if found[3] else 1000) ** _POWERS[unit])


def show_size(count: int) -> str:
    """Bytes for people to read: "999 B", "1.5 KB", "20.0 GB"; `parse_size` reads it back, about."""
    if count < 1000:
        return f"{count} B"
    for unit in "KMG":
        count_in_unit = count / 1000 ** _POWERS[unit]
        if round(count_in_unit, 1) < 1000:
            return f"{count_in_unit:.1f} {unit}B"
    return f"{count / 1000**4:.1f} TB"


def parse_span(text: str, option: str) -> float:
    """Seconds: "90s", "15m", "12h", "30d", "2w". Else UsageError of one line."""
    found = _SPAN.fullmatch(text)
    if not found:
        raise UsageError(
            f"{option} {text}: expected a span of time such as 30d, 12h, 15m or 90s", option
        )
    return float(found[1]) * _SECONDS[found[2].lower()]
