"""Which idle cache is found, and that what is kept stays bounded."""

from dataclasses import dataclass

from fourbee.engine.prefix_cache import MIN_COMMON, PrefixCache


@dataclass(frozen=True)
class FakeCache:
    length: int
    capacity: int


def tokens(count: int, first: int = 0) -> list[int]:
    return [first, *range(1, count)]


def test_the_longest_common_beginning_is_found() -> None:
    idle = PrefixCache(1000)
    short, long = FakeCache(20, 20), FakeCache(30, 30)
    idle.keep([*tokens(20), 99], short)
    idle.keep(tokens(30), long)
    assert idle.longest([*tokens(25), 500, 501]) == (long, 25)
    assert idle.longest([*tokens(20), 99, 7]) == (short, 21)
    assert idle.longest(tokens(30, first=5)) is None


def test_too_little_in_common_is_a_miss() -> None:
    idle = PrefixCache(1000)
    idle.keep(tokens(40), FakeCache(40, 40))
    idle.keep(tokens(MIN_COMMON - 1, first=3), FakeCache(1, 1))
    assert idle.longest(tokens(MIN_COMMON - 1)) is None
    assert idle.longest(tokens(MIN_COMMON)) is not None
    assert idle.longest([]) is None
    assert idle.size == 40


def test_a_cache_that_goes_on_from_another_takes_its_place() -> None:
    idle = PrefixCache(1000)
    idle.keep(tokens(20), FakeCache(20, 20))
    idle.keep(tokens(30), FakeCache(30, 32))
    assert idle.size == 32


def test_the_longest_unused_goes_first_and_the_bound_holds() -> None:
    idle = PrefixCache(100)
    first, second, third = (FakeCache(40, 40) for _ in range(3))
    idle.keep(tokens(40, first=1000), first)
    idle.keep(tokens(40, first=2000), second)
    assert idle.longest(tokens(40, first=1000)) == (first, 40)
    idle.keep(tokens(40, first=3000), third)
    assert idle.size == 80
    assert idle.longest(tokens(40, first=2000)) is None
    assert idle.longest(tokens(40, first=1000)) is not None


def test_a_cache_above_the_bound_is_not_kept_and_drops_nothing() -> None:
    idle = PrefixCache(100)
    idle.keep(tokens(40), FakeCache(40, 40))
    idle.keep(tokens(90, first=1000), FakeCache(90, 128))
    assert idle.size == 40
    off = PrefixCache(0)
    off.keep(tokens(40), FakeCache(40, 40))
    assert off.size == 0
