"""How much memory there is, and how much of it this process may use.

What the kernel says, bounded by the control groups that the process is in: a container's limit. Not
here: what the memory is for (`engine/ledger.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of a machine that does not say what is free, the part that is taken for free.
_FREE_SHARE = 0.75
# Of a system that says nothing at all.
_UNKNOWN_MACHINE = 8_000_000_000


@dataclass(frozen=True)
class _Group:
    """A control group's limit, and what can no longer be had of it without swapping."""

    limit: int
    held: int


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or its container's; 0 = unknown. `root` is where /proc and /sys are."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    return min([machine, *(group.limit for group in _groups(root))])


def usable_bytes(root: Path = Path("/")) -> int:
    """What this process may take in all: what it has taken already, and what is available."""
    free = available_bytes(root)
    if free is None:
        return int(memory_bytes(root) * _FREE_SHARE) or _UNKNOWN_MACHINE
    return free + (_field(root / "proc/self/status", "RssAnon") or 0)


def available_bytes(root: Path = Path("/")) -> int | None:
    """What can be had more without swapping; None where the system does not say.

    The page cache counts as available, but for what the system keeps of it.
    """
    available = _field(root / "proc/meminfo", "MemAvailable")
    if available is None:
        return None
    return min([available, *(max(0, group.limit - group.held) for group in _groups(root))])


def _field(path: Path, name: str) -> int | None:
    """A line `name:  123 kB` of a file in /proc, in bytes; None where there is none."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _groups(root: Path) -> Iterator[_Group]:
    """The groups with a limit that this process is in, and those around them."""
    folders = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            base, names = folders / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            base, names = folders, ("memory.max", "memory.current")
        else:
            continue
        # Inside of a container the path may be that of the outside: what is not there is passed.
        own = base / path.strip("/")
        for folder in (own, *own.parents[: len(own.parts) - len(base.parts)]):
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit():
                yield _Group(int(limit), max(0, int(used or 0) - _page_cache(folder)))


def _page_cache(folder: Path) -> int:
    """Bytes of files that a group has in memory, and those below it."""
    text = _text(folder / "memory.stat")
    prefix = "total_" if "\ntotal_inactive_file " in text else ""
    found = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", text, re.MULTILINE)
    return sum(map(int, found))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
