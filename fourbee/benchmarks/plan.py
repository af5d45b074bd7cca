"""What a model needs and how fast it will be, before it is downloaded or loaded.

Memory is the ledger's, as `fourbee serve` fits it; times are those of `pace.py` and `gpus.py`.
Only numbers and their table are here; the words are `fourbee plan`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fourbee.benchmarks.pace import CHUNK, Pace, key_bytes, layer_bytes, layer_products
from fourbee.engine.ledger import (
    KEYS,
    POOL_SHARE,
    SMALL_CONTEXT,
    Ledger,
    Setup,
    kv_pages,
    ledger,
    page_bytes,
    pages_of,
    reserve_bytes,
)
from fourbee.foundation.errors import CapacityError, UsageError
from fourbee.foundation.memory import usable_bytes
from fourbee.foundation.sizes import show_size
from fourbee.kernels.attention_pattern import PAGE_KEYS

if TYPE_CHECKING:
    from fourbee.benchmarks.roofline import Limits

# Rows of the table of times, as far as the context goes; and the context itself.
_LENGTHS = (1024, 4096, 16_384, 65_536)


@dataclass(frozen=True)
class Wish:
    """What is to be run, and where. `memory` None is this machine's, as `serve` takes it."""

    setup: Setup
    memory: int | None = None
    context: int | None = None  # of each user; None = what fits
    users: int = 1

    def __post_init__(self) -> None:
        longest = self.setup.config.max_position_embeddings
        if self.context is not None and self.context > longest:
            raise UsageError(
                f"--context {self.context}: the model has {longest} positions", "context"
            )

    @property
    def batch(self) -> int:
        """Users whose requests run at a time."""
        return min(self.users, self.setup.max_running)


@dataclass(frozen=True)
class KeysIn:
    """Keys and values in one type: what a token takes, how long a context fits each user."""

    kv_type: str
    token_bytes: float
    context: int  # 0 where not even a small one fits
    bytes: int  # of all users' context that is planned


@dataclass(frozen=True)
class Memory:
    """The ledger of a plan, and the memory that it is for."""

    ledger: Ledger
    context: int  # of each user: what was asked for, or what fits
    usable: int
    reserve: int
    types: tuple[KeysIn, ...]

    @property
    def fits(self) -> bool:
        return self.ledger.total + self.reserve <= self.usable


@dataclass(frozen=True)
class Time:
    """Of a prompt of so many tokens, and of an answer after it."""

    tokens: int
    read_seconds: float
    alone: float  # tokens a second of an answer
    together: float  # of all of a batch's answers, each that deep


def plan_memory(wish: Wish) -> Memory:
    """What fits, in each type of keys and values that the backend has."""
    setup, config = wish.setup, wish.setup.config
    usable = usable_bytes() if wish.memory is None else wish.memory
    context = wish.context or _fitting(wish, setup, usable) or _small(setup)
    pages = wish.users * pages_of(context)
    kinds = {setup.kept_keys}
    if setup.backend == "native":
        kinds |= {setup.compute_type, "int8", "int4"}
    types = []
    for kind in sorted(kinds, key=lambda kind: -page_bytes(config, kind)):
        kept = setup if kind == setup.kept_keys else replace(setup, kv_type=kind)
        page = page_bytes(config, kind)
        fitting = _fitting(wish, kept, usable)
        types.append(KeysIn(kind, page / PAGE_KEYS, fitting, pages * page))
    found = ledger(setup, pages * PAGE_KEYS, context)
    return Memory(found, context, usable, reserve_bytes(usable), tuple(types))


def _small(setup: Setup) -> int:
    return min(SMALL_CONTEXT, setup.config.max_position_embeddings)


def _fitting(wish: Wish, setup: Setup, usable: int) -> int:
    """The context that each user may have; 0 where not even a small one fits."""
    share = POOL_SHARE if wish.memory is None else 1.0
    try:
        fitted = kv_pages(setup, usable, pool_share=share)
    except CapacityError:
        return 0
    each = min(fitted.context_length, fitted.pages // wish.users * PAGE_KEYS)
    return each if each >= _small(setup) else 0


def plan_times(wish: Wish, pace: Pace, context: int) -> tuple[Time, ...]:
    """A row for some lengths up to the context."""
    layers, batch = wish.setup.config.num_hidden_layers, wish.batch
    lengths = [*(length for length in _LENGTHS if length < context), context]
    return tuple(
        Time(
            length,
            pace.reading_seconds(layers, length),
            1 / pace.step_seconds(layers, 1, length),
            batch / pace.step_seconds(layers, batch, length),
        )
        for length in lengths
    )


def shares(setup: Setup, pace: Pace, most: Limits) -> dict[str, float]:
    """What the parts reach of the machine's limits: of its products a second, of its reading."""
    config, one = setup.config, pace.writing[0]
    whole = setup.quantize != "none" or bool(setup.formats)
    peak = most.int8 if whole else most.bf16
    done = {
        "a prompt's products": (CHUNK * layer_products(config) / peak, pace.chunk),
        "its attention": (2 * config.query_size / peak, pace.pair),
        "an answer's weights": (layer_bytes(setup) / most.read_bytes, one.layer),
        "its keys and values": (key_bytes(setup) / most.read_bytes, one.key),
    }
    return {name: least / seconds for name, (least, seconds) in done.items() if seconds}


def document(
    wish: Wish, memory: Memory, pace: Pace | None, most: Limits | None, how: str
) -> dict[str, Any]:
    """The plan as JSON has it; sizes in bytes, rates in tokens a second."""
    setup = wish.setup
    times = plan_times(wish, pace, memory.context) if pace else ()
    return {
        "quantize": setup.quantize,
        "kv_type": setup.kept_keys,
        "users": wish.users,
        "context": memory.context,
        "memory": {entry.name: entry.bytes for entry in memory.ledger.entries},
        "total_bytes": memory.ledger.total,
        "usable_bytes": memory.usable,
        "reserve_bytes": memory.reserve,
        "fits": memory.fits,
        "kv_types": [asdict(one) for one in memory.types],
        "times": [asdict(one) for one in times],
        "times_are": how,
        "limits": asdict(most) if most else None,
        "shares_of_the_limits": shares(setup, pace, most) if pace and most else None,
    }


def page(
    name: str, where: str, wish: Wish, memory: Memory, pace: Pace | None, most: Limits | None,
    how: str,
) -> list[str]:  # fmt: skip
    """The plan for people, line by line."""
    setup = wish.setup
    own = "its own packing" if setup.formats else setup.compute_type
    weights = own if setup.quantize == "none" else setup.quantize
    lines = [f"{name}, {where}: weights in {weights}, keys and values in {setup.kept_keys}", ""]
    lines += [*_memory_lines(wish, memory), "", f"time: {how}"]
    if pace:
        lines += _time_lines(wish, plan_times(wish, pace, memory.context))
    if wish.users > wish.batch:
        lines.append(f"  of {wish.users} users {wish.batch} are answered at a time, the rest wait")
    if pace and most:
        reached = ", ".join(f"{n} {one:.0%}" for n, one in shares(setup, pace, most).items())
        lines.append(
            f"  this machine: {most.read_bytes / 1e9:,.0f} GB/s, int8 {most.int8 / 1e9:,.0f} and "
            f"bfloat16 {most.bf16 / 1e9:,.0f} GMAC/s; of that {reached}"
        )
    return lines


def _memory_lines(wish: Wish, memory: Memory) -> list[str]:
    lines = ["memory"]
    users = f"{wish.users} x " if wish.users > 1 else ""
    for entry in memory.ledger.entries:
        said = f"   {users}{memory.context:,} tokens" if entry.name == KEYS else ""
        lines.append(f"  {entry.name:<16} {show_size(entry.bytes):>10}{said}")
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    lines.append(
        f"  {'total':<16} {show_size(memory.ledger.total):>10}   {verdict}: "
        f"{show_size(memory.usable)}, of which {show_size(memory.reserve)} stay free"
    )
    each = " for each user" if wish.users > 1 else ""
    taken = f"{users}{memory.context:,} take"
    lines += ["", f"keys and values    a token   context that fits{each}   {taken:>20}"]
    for one in memory.types:
        most = f"{one.context:,}" if one.context else "none"
        lines.append(
            f"  {one.kv_type:<14} {show_size(round(one.token_bytes)):>9}   "
            f"{most:>{17 + len(each)}}   {show_size(one.bytes):>20}"
        )
    return lines


def _time_lines(wish: Wish, times: Sequence[Time]) -> list[str]:
    head = f"  {'tokens':>9}   {'to read them':>12}   {'then tokens/s':>13}"
    together = f"   {f'all of {wish.batch} together':>18}" if wish.batch > 1 else ""
    lines = [head + together]
    for one in times:
        more = f"   {one.together:>18,.1f}" if wish.batch > 1 else ""
        lines.append(
            f"  {one.tokens:>9,}   {show_seconds(one.read_seconds):>12}   {one.alone:>13,.1f}{more}"
        )
    return lines


def show_seconds(seconds: float) -> str:
    """A span for people: "0.42 s", "12.3 s", "4.2 min", "1.3 h"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
