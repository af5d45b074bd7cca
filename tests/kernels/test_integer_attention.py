"""Attention over int8 and int4 keys and values: sinks, outlier channels, long contexts."""

from __future__ import annotations

import numpy as np
import pytest

from fourbee.kernels import _native as native
from fourbee.model.key_smoothing import smoothed_norms

ROWS, SIZE = 64, 128
TOLERANCES = {"int8": 0.02, "int4": 0.15}
CHUNK = 4096


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def long_or_not(keys: int):
    return pytest.param(keys, marks=pytest.mark.slow) if keys > 40_000 else keys


def error(kind, query, key, value) -> float:
    """Relative error of the last rows' outputs, which see all keys, nearly."""
    keys = len(key)
    pages = np.arange(-(-keys // 64))
    pool = native.KvPool(1, 1, SIZE, kind, len(pages))

    def attend(rows, start):
        count = len(rows)
        out = np.empty((count, 1, SIZE), np.float32)
        here = slice(start, start + count)
        native.attend(
            pool, 0, rows[:, None], key[here, None], value[here, None], np.array([count]),
            np.array([start]), np.array([0, len(pages)]), pages, out,
        )  # fmt: skip
        return out[:, 0]

    before = keys - ROWS
    for start in range(0, before, CHUNK):
        attend(np.zeros((min(CHUNK, before - start), SIZE), np.float32), start)
    found = attend(query, before)
    expected = np.empty((ROWS, SIZE))
    for row in range(ROWS):
        seen = before + row + 1
        scores = key[:seen].astype(np.float64) @ query[row] / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        expected[row] = weights @ value[:seen] / weights.sum()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("keys", [long_or_not(n) for n in (4096, 32_768, 262_144)])
@pytest.mark.parametrize("sink", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", TOLERANCES)
def test_attention_with_a_sink(rng, kind, keys, sink) -> None:
    query, key, value = (
        numbers(rng, ROWS, SIZE) / 2,
        numbers(rng, keys, SIZE),
        numbers(rng, keys, SIZE),
    )
    if sink:
        # Key 0 gets this share of the weight and stands for nearly nothing, as sinks do.
        value[0] *= 0.01
        others = np.log(np.exp(query @ key[1:].T / np.sqrt(SIZE)).sum(1))
        wanted = (np.log(sink / (1 - sink)) + others) * np.sqrt(SIZE)
        toward = key[0] / (key[0] @ key[0])
        query += (wanted - query @ key[0])[:, None] * toward
    found = error(kind, query, key, value)
    print(f"{kind}, keys {keys}, sink {sink}: {found:.4f}")
    assert found < TOLERANCES[kind]


@pytest.mark.parametrize("keys", [long_or_not(n) for n in (4096, 32_768, 262_144)])
@pytest.mark.parametrize("kind", TOLERANCES)
def test_attention_with_outlier_channels_of_the_keys(rng, kind, keys) -> None:
    query_norm = np.full(SIZE, 0.5, np.float32)
    key_norm = np.ones(SIZE, np.float32)
    key_norm[[3, 40, 67, 100]] = 16, 24, 16, 20
    query_norm[[3, 40, 67, 100]] /= 8
    query_norm, key_norm = smoothed_norms(query_norm, key_norm)
    query, key = numbers(rng, ROWS, SIZE) * query_norm, numbers(rng, keys, SIZE) * key_norm
    found = error(kind, query, key, numbers(rng, keys, SIZE))
    print(f"{kind}, keys {keys}, outliers: {found:.4f}")
    assert found < TOLERANCES[kind]


@pytest.mark.parametrize("nats", [80, 84, 86, 88, 400])
@pytest.mark.parametrize("kind", TOLERANCES)
def test_attention_to_one_key_alone(rng, kind, nats) -> None:
    # All keys but the first are so many nats below it, on pages of their own too: e^-87 times a
    # value's scale is a number that 127 cannot be divided by.
    query, key = np.zeros((ROWS, SIZE), np.float32), np.zeros((512, SIZE), np.float32)
    query[:, 0], key[0, 0] = nats, np.sqrt(SIZE)
    found = error(kind, query, key, numbers(rng, 512, SIZE))
    print(f"{kind}, {nats} nats: {found:.4f}")
    assert found < TOLERANCES[kind]


def test_smoothing_keeps_the_scores(rng) -> None:
    query_norm, key_norm = np.abs(numbers(rng, SIZE)), np.abs(numbers(rng, SIZE)) * 10
    key_norm[5] = query_norm[9] = 0
    smooth_query, smooth_key = smoothed_norms(query_norm, key_norm)
    assert np.allclose(smooth_query * smooth_key, query_norm * key_norm, rtol=1e-6)
    assert np.abs(smooth_key).max() < np.abs(key_norm).max()
    # One factor for both channels of a rotary pair.
    used = (smooth_key > 0) & (np.roll(smooth_key, SIZE // 2) > 0)
    factors = smooth_key[used] / key_norm[used]
    paired = np.roll(smooth_key, SIZE // 2)[used] / np.roll(key_norm, SIZE // 2)[used]
    assert np.allclose(factors, paired, rtol=1e-6)
