"""The process that we run in and its machine: how memory is kept, what the processor is."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# glibc's mallopt parameters (malloc.h) and the largest threshold that it accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_KEEP = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has malloc keep freed blocks of up to 32 MiB instead of returning them to the system.

    A training step allocates and frees the same large tensors again and again; fetching their pages
    anew costs more than the arithmetic on them (a quarter of a step). False where libc is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_TRIM_THRESHOLD, _KEEP),
        (_ARENA_MAX, 1),
    )
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def return_freed_memory() -> bool:
    """Has malloc give what is free to the system, as it does not by itself after many small blocks.

    A tokenizer that was read leaves 100 MB behind. False where libc is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):
        return False


def processor_facts() -> dict[str, str]:
    """What Linux tells of a processor ("model name" and so on); nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
