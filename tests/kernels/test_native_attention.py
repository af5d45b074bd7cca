"""Native attention over patterns: its errors, and bits that know no chunks, threads or others.

`test_native_variants.py` runs this file again for every instruction set of the machine.
"""

from __future__ import annotations

import numpy as np
import pytest

from fourbee.kernels.attention_pattern import (
    Causal,
    DualChunk,
    PageLists,
    SlidingWindow,
    step_spans,
    variant_table,
)

native = pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")

# Of 4 bits the rounding of random keys and values itself.
TOLERANCES = {"f32": 1e-6, "bf16": 5e-3, "int8": 2e-2, "int4": 0.15}
PATTERNS = {
    "causal": Causal(),
    "window": SlidingWindow(100, 4),
    "window-of-one": SlidingWindow(1),
    "streaming": SlidingWindow(300, 70, sink_variant=1),
    "dual-chunk": DualChunk(150),  # a chunk ends within a page: rows see it with two variants
    "small-chunks": DualChunk(7),
    "pages": PageLists(tuple((0, page // 2, page - 3) for page in range(18))),
    "own-page": PageLists(()),
}
LENGTHS = [600, 70, 513, 3]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def two_threads():
    native.set_threads(2)


NO_BYTES = np.empty(0, np.uint8)


class Sequences:
    """Random sequences, the pages they are written to, and what their rows see."""

    def __init__(self, rng, kind, shape, pattern, slopes) -> None:
        heads, kv_heads, size = shape
        ends = np.cumsum([-(-n // 64) for n in LENGTHS]).tolist()
        self.pool = native.KvPool(2, kv_heads, size, kind, ends[-1])
        self.pattern, self.slopes = pattern, slopes
        self.rows = [
            (rng.standard_normal((3, n, heads, size), np.float32),
             rng.standard_normal((n, kv_heads, size), np.float32),
             rng.standard_normal((n, kv_heads, size), np.float32))
            for n in LENGTHS
        ]  # fmt: skip
        self.pages = [[*range(*two)] for two in zip([0, *ends], ends, strict=False)]

    def attend(self, *chunks, plain=False) -> np.ndarray:
        """One call over chunks of (sequence, start, count); `plain` without spans."""
        query, key, value = (
            np.concatenate(
                [self.rows[s][i][..., at : at + n, :, :] for s, at, n in chunks], axis=-3
            )
            for i in range(3)
        )
        counts, starts = (np.array([chunk[i] for chunk in chunks]) for i in (2, 1))
        pages = [self.pages[s] for s, _, _ in chunks]
        offsets = np.cumsum([0, *map(len, pages)])
        out = np.full_like(query[0], np.nan)
        step = (counts, starts, offsets, np.concatenate(pages))
        if plain:
            native.attend(self.pool, 1, query[0], key, value, *step, out)
            return out
        spans = step_spans([self.pattern] * len(chunks), starts, counts, explicit=True)
        all_seen = (np.zeros(len(chunks) + 1, np.int64), NO_BYTES)
        native.attend_spans(
            self.pool, 1, query, key, value, *step, *spans, self.slopes, *all_seen, out
        )
        return out

    def expected(self) -> np.ndarray:
        return np.concatenate([self._expected(*rows) for rows in self.rows])

    def _expected(self, query, key, value) -> np.ndarray:
        query, key, value = (x.astype(np.float64) for x in (query, key, value))
        _, count, heads, size = query.shape
        key, value = (x.repeat(heads // x.shape[1], axis=1) for x in (key, value))
        seen_by = variant_table(self.pattern, 0, count)
        scores = np.zeros((heads, count, count))
        for variant in range(3):
            product = np.einsum("thk,shk->hts", query[variant], key) / np.sqrt(size)
            scores += np.where(seen_by == variant, product, 0)
        if len(self.slopes):
            scores -= self.slopes[:, None, None] * np.subtract.outer(np.arange(count), range(count))
        weights = np.exp(np.where(seen_by < 0, -np.inf, scores - scores.max(-1, keepdims=True)))
        return np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), value)


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


WHOLE = [(s, 0, n) for s, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("shape", "sloped"), [((6, 2, 80), False), ((3, 1, 16), True)])
def test_patterns_in_a_mixed_batch_and_their_bits(rng, kind, name, shape, sloped) -> None:
    slopes = np.geomspace(0.5, 0.01, shape[0] if sloped else 0).astype(np.float32)
    several = Sequences(rng, kind, shape, PATTERNS[name], slopes)
    whole = several.attend(*WHOLE)
    assert relative_error(whole, several.expected()) < TOLERANCES[kind]
    # The same rows in chunks, decoded one by one and beside others: the same bits.
    native.set_threads(1)
    a = several.attend((0, 0, 300), (1, 0, 1))
    native.set_threads(3)
    b = several.attend((1, 1, 69), (0, 300, 299), (2, 0, 512), (3, 0, 2))
    c = several.attend((3, 2, 1), (0, 599, 1), (2, 512, 1))
    parts = [a[:300], b[69:368], c[1:2], a[300:], b[:69], b[368:880], c[2:], b[880:], c[:1]]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def four_bits(x, group) -> np.ndarray:
    """What int4 pages hold: between the least and the greatest of a group, in fifteen steps."""
    values = x.reshape(*x.shape[:-1], -1, group)
    low = values.min(-1, keepdims=True).astype(np.float16).astype(np.float32)
    step = ((values.max(-1, keepdims=True) - low) / 15).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint((values - low) / step), 0, 15) * step + low).reshape(x.shape)


@pytest.mark.parametrize(("size", "group"), [(128, 64), (96, 32), (80, 16)])
@pytest.mark.parametrize("name", ["causal", "dual-chunk"])
def test_int4_attention_is_that_of_the_numbers_in_the_pages(rng, size, group, name) -> None:
    several = Sequences(rng, "int4", (4, 2, size), PATTERNS[name], np.empty(0, np.float32))
    found = several.attend(*WHOLE)
    several.rows = [(query, four_bits(key, group), four_bits(value, group))
                    for query, key, value in several.rows]  # fmt: skip
    assert relative_error(found, several.expected()) < TOLERANCES["int8"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_int4_shows_what_it_cannot_hold_in_its_own_rows_alone(rng, value) -> None:
    several = Sequences(rng, "int4", (4, 2, 80), Causal(), np.empty(0, np.float32))
    for i in (1, 2):
        several.rows[0][i][500] = value
    out = several.attend((0, 0, 500), (1, 0, 70))
    assert np.isfinite(out).all()
    assert not np.isfinite(several.attend((0, 500, 100))).any()


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("name", ["causal", "dual-chunk"])
@pytest.mark.parametrize("what", [1, 2])  # keys, values
@pytest.mark.parametrize("number", [np.nan, np.inf, 3.39e38])
def test_what_is_not_finite_reaches_the_rows_that_see_it_alone(
    rng, kind, name, what, number
) -> None:
    several = Sequences(rng, kind, (4, 2, 80), PATTERNS[name], np.empty(0, np.float32))
    clean = several.attend((0, 0, 600))
    several.rows[0][what][500, 1, 3] = number  # in the middle of a page
    whole = several.attend((0, 0, 600))
    assert np.isfinite(clean).all() and whole[:500].tobytes() == clean[:500].tobytes()
    assert whole[:, :2].tobytes() == clean[:, :2].tobytes()  # the other head
    if np.isnan(number) or (what == 2 and (np.isinf(number) or kind == "int4")):
        seen = several.pattern.spans(0, 600)
        sees = [any(b <= 500 < e for b, e, _ in seen.ranges[seen.offsets[i] : seen.offsets[i + 1]])
                for i in range(600)]  # fmt: skip
        assert np.isnan(whole[sees, 2:]).all() and np.isfinite(whole[np.logical_not(sees)]).all()
    parts = [several.attend((0, at, n)) for at, n in ((0, 450), (450, 50), (500, 1), (501, 99))]
    assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)


@pytest.mark.parametrize("kind", TOLERANCES)
def test_causal_spans_have_the_bits_of_plain_attention(rng, kind) -> None:
    several = Sequences(rng, kind, (4, 2, 80), Causal(), np.empty(0, np.float32))
    assert several.attend(*WHOLE).tobytes() == several.attend(*WHOLE, plain=True).tobytes()
    no_slope = Sequences(rng, kind, (4, 2, 80), Causal(), np.zeros(4, np.float32))
    assert no_slope.attend(*WHOLE).tobytes() == no_slope.attend(*WHOLE, plain=True).tobytes()


@pytest.mark.parametrize("kind", TOLERANCES)
def test_keys_that_are_not_seen_are_not_read(rng, kind) -> None:
    several = Sequences(rng, kind, (4, 2, 16), SlidingWindow(64, 64), np.empty(0, np.float32))
    clean = several.attend((0, 0, 600))[-64:]
    for i in (1, 2):
        several.rows[0][i][64:400] = np.nan
    dirty = several.attend((0, 0, 600))[-64:]
    assert dirty.tobytes() == clean.tobytes() and np.isfinite(clean).all()


def test_wrong_spans_are_refused(rng) -> None:
    pool = native.KvPool(1, 1, 16, "f32", 1)
    page = np.array([0])
    rows = rng.standard_normal((2, 1, 16), np.float32)
    step = [np.array(x) for x in ([2], [0], [0, 1])]

    def attend(offsets=(0, 1, 3), spans=((0, 1, 0), (0, 1, 1), (1, 2, 0)), slopes=(), width=2):
        native.attend_spans(
            pool, 0, np.stack([rows] * width) if width else np.empty((0, 2, 1, 16), np.float32),
            rows, rows, *step, page, np.array(offsets), np.array(spans).reshape(-1, 3),
            np.array(slopes, np.float32), np.zeros(2, np.int64), NO_BYTES, np.empty_like(rows),
        )  # fmt: skip

    attend()
    attend(slopes=(0.5,))
    attend(offsets=(0, 0, 0))
    for wrong in (
        {"width": 1}, {"width": 0}, {"slopes": (1, 2)}, {"offsets": (0, 1)}, {"offsets": (0, 1, 4)},
        {"offsets": (1, 0, 3)}, {"offsets": (0, 0, 3)}, {"offsets": (-1, 1, 3)},
        {"spans": ((0, 2, 0), (0, 1, 1), (1, 2, 0))}, {"spans": ((0, 1, 0), (1, 2, 1), (0, 1, 0))},
        {"spans": ((0, 1, 0), (0, 1, 1), (0, 2, 0))}, {"spans": ((0, 1, 0), (0, 0, 1), (1, 2, 0))},
        {"spans": ((-1, 1, 0), (0, 1, 1), (1, 2, 0))},
        {"spans": ((0, 1, -1), (0, 1, 1), (1, 2, 0))},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            attend(**wrong)


def test_pages_that_no_span_names_may_be_dropped(rng) -> None:
    pool = native.KvPool(1, 1, 16, "f32", 4)
    rows = rng.standard_normal((200, 1, 16), np.float32)
    out = np.empty((1, 1, 16), np.float32)

    def attend(pages, spans, start, out) -> None:
        count = len(out)
        offsets = np.arange(0, count + 1) * len(spans)
        native.attend_spans(
            pool, 0, rows[None, start : start + count], rows[start : start + count],
            rows[start : start + count], np.array([count]), np.array([start]), np.array([0, 4]),
            np.array(pages), offsets, np.tile(np.array(spans), (count, 1)),
            np.empty(0, np.float32), np.zeros(2, np.int64), NO_BYTES, out,
        )  # fmt: skip

    for start in range(199):
        attend([0, 1, 2, 3], [(0, start + 1, 0)], start, out)
    seen = [(0, 64, 0), (130, 200, 0)]
    attend([0, 1, 2, 3], seen, 199, out)
    whole = out.tobytes()
    attend([0, -1, 2, 3], seen, 199, out)
    assert out.tobytes() == whole
    for pages, spans in (
        ([0, -1, 2, 3], [(0, 65, 0), (130, 200, 0)]), ([0, -1, 2, 3], [(0, 200, 0)]),
        ([-1, -1, 2, 3], seen), ([0, -1, 2, -1], seen), ([0, -2, 2, 3], seen),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="page"):
            attend(pages, spans, 199, out)


def test_wrong_lists_of_pages_are_refused(rng) -> None:
    pool = native.KvPool(1, 1, 16, "f32", 3)
    rows = rng.standard_normal((128, 1, 16), np.float32)

    def attend(offsets=(0, 2), seen=(0b011, 0b111), start=64, count=128, spans=()) -> bytes:
        x, out = rows[:count], np.zeros((count, 1, 16), np.float32)
        native.attend_spans(
            pool, 0, x[None], x, x, np.array([count]), np.array([start]), np.array([0, 3]),
            np.arange(3), np.arange(count + 1) if spans else np.zeros(count + 1, np.int64),
            np.array(spans, np.int64).reshape(-1, 3), np.empty(0, np.float32), np.array(offsets),
            np.array(seen, np.uint8), out,
        )  # fmt: skip
        return out.tobytes()

    assert attend() == attend((0, 0), ())  # all pages up to its own are all pages
    assert attend() != attend(seen=(0b010, 0b111))
    for wrong in (
        {"offsets": (0, 1)}, {"offsets": (0, 3)}, {"offsets": (0,)}, {"offsets": (1, 2)},
        {"offsets": (2, 0)}, {"seen": (0b001, 0b111)}, {"seen": (0b011, 0b011)}, {"start": 63},
        {"count": 127}, {"spans": [(0, 65 + row, 0) for row in range(128)]},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            attend(**wrong)
