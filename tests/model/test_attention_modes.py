"""Attention modes against their definition: every pair of a row and a key at its own distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.numpy_ops import NumpyOperations
from fourbee.kernels.paged_cache import DROPPED, PagedCache
from fourbee.kernels.sparse_attention import PageBudget, SparsePrompt, chosen_pages
from fourbee.model.attention_modes import (
    DenseMode,
    DualChunkMode,
    SparseMode,
    StreamingMode,
    attention_modes,
)
from fourbee.model.config import Qwen3Config
from fourbee.model.positions import position_scheme
from fourbee.model.qwen3 import forward
from fourbee.model.weights import tensor_shapes, weights_tree

CONFIG = Qwen3Config(
    vocab_size=200, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
    torch_dtype="float32", rope_theta=1e4,
)  # fmt: skip
BACKENDS = ["torch", "numpy"] + ["native"] * native_built()
IDS = np.random.default_rng(3).integers(0, 200, 700)


@pytest.fixture(scope="module", params=BACKENDS)
def model(request):
    ops = open_operations(request.param, "cpu", "float32")
    random = np.random.default_rng(5)
    tensors = {}
    for name, shape in tensor_shapes(CONFIG).items():
        values = random.normal(0, 0.3, shape) if len(shape) == 2 else np.ones(shape)
        tensors[name] = ops.from_numpy(values.astype(np.float32))
    return ops, weights_tree(CONFIG, tensors)


class Definition:
    """Softmax over the keys that a row sees, rotated pair by pair, in float64."""

    def __init__(self, ops, distance, sees) -> None:
        self.ops, self.distance, self.sees = ops, distance, sees
        self.frequencies = position_scheme(CONFIG).inverse_frequencies.astype(np.float64)

    def __call__(self, layer, query_QTHK, key_TGK, value_TGK):
        query, key, value = (
            np.asarray(self.ops.to_numpy(x), dtype=np.float64)
            for x in (query_QTHK[0], key_TGK, value_TGK)
        )
        count, heads, size = query.shape
        rows = np.arange(count)
        distances = self.distance(rows[:, None], rows[None])
        seen = self.sees(rows[:, None], rows[None]) & (rows[None] <= rows[:, None])
        angles = distances[..., None] * self.frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        out = np.empty_like(query)
        for head in range(heads):
            q, k = query[:, head], key[:, head * key.shape[1] // heads]
            (q1, q2), (k1, k2) = np.split(q, 2, axis=1), np.split(k, 2, axis=1)
            scores = np.einsum("ti,si,tsi->ts", q1, k1, cos) + np.einsum(
                "ti,si,tsi->ts", q2, k2, cos
            )
            scores += np.einsum("ti,si,tsi->ts", q1, k2, sin)
            scores -= np.einsum("ti,si,tsi->ts", q2, k1, sin)
            scores = np.where(seen, scores / np.sqrt(size), -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[:, head] = weights @ value[:, head * value.shape[1] // heads]
        flat = out.reshape(count, -1).astype(np.float32)
        return flat if isinstance(query_QTHK, np.ndarray) else torch.from_numpy(flat)


def by_definition(model, count, distance, sees=lambda i, j: i >= j) -> np.ndarray:
    """Unrotated queries and keys go in: each position is 0."""
    ops, weights = model
    attention = Definition(ops, distance, sees)
    ids = IDS[:count]
    return np.asarray(
        ops.to_numpy(forward(weights, ids, np.zeros(count, np.int64), attention, ops).final)
    )


def with_mode(model, mode, counts) -> np.ndarray:
    """As an engine runs it, in chunks."""
    ops, weights = model
    pool = ops.new_pool(2, 2, 64, 16)
    cache, start, found = PagedCache(pool, list(range(11))), 0, []
    for count in counts:
        attention = ops.cached_attention([(cache, count)], [mode.pattern])
        ids, positions = IDS[start : start + count], mode.positions(start, count)
        hidden = forward(weights, ids, positions, attention, ops).final
        found.append(np.asarray(ops.to_numpy(hidden)))
        start += count
        for page in mode.droppable(start):
            cache.pages[page] = DROPPED
    return np.concatenate(found)


def test_dense_is_the_true_distance(model) -> None:
    found = with_mode(model, DenseMode(1000), [100, 60, 1])
    assert np.allclose(found, by_definition(model, 161, lambda i, j: i - j), atol=2e-4)


def test_dual_chunks_are_the_paper_s_distances(model) -> None:
    mode = DualChunkMode(trained=80, local=16, longest=1000)  # chunks of 64

    def distance(i, j):
        place, other = i % 64, j % 64
        chunks = i // 64 - j // 64
        successive = np.minimum(place + 64, 80) - other
        return np.where(chunks == 0, i - j, np.where(chunks == 1, successive, 80 - other))

    found = with_mode(model, mode, [150, 100, 50, 1])
    assert np.allclose(found, by_definition(model, 301, distance), atol=2e-4)


def test_no_dual_chunk_distance_is_longer_than_trained_and_near_ones_are_true() -> None:
    mode = DualChunkMode(trained=80, local=16, longest=1000)
    positions = mode.positions(0, 1000)
    for row in range(1000):
        for begin, end, variant in mode.pattern.spans(row, 1).ranges:
            keys = np.arange(begin, end)
            distances = positions[variant, row] - positions[0, keys]
            assert (distances >= 0).all() and (distances <= 80).all()
            near = row - keys <= 16
            assert (distances[near] == (row - keys)[near]).all()


def test_within_the_first_chunk_dual_chunks_are_dense(model) -> None:
    dense = with_mode(model, DenseMode(1000), [50, 14])
    assert np.allclose(with_mode(model, DualChunkMode(80, 16, 1000), [50, 14]), dense, atol=1e-5)


def test_streaming_sees_the_window_and_the_first_page_near_by(model) -> None:
    mode = StreamingMode(window=100)

    def distance(i, j):
        return np.where((j < 64) & (i - j >= 100), np.minimum(i, 163) - j, i - j)

    found = with_mode(model, mode, [150, 300, 60, 1])
    wanted = by_definition(model, 511, distance, lambda i, j: (i - j < 100) | (j < 64))
    assert np.allclose(found, wanted, atol=2e-4)


def test_while_the_window_is_not_full_streaming_is_dense(model) -> None:
    dense = with_mode(model, DenseMode(1000), [60, 60])
    assert np.allclose(with_mode(model, StreamingMode(200), [60, 60]), dense, atol=1e-4)


def test_pages_are_dropped_when_no_row_sees_them() -> None:
    mode = StreamingMode(window=100)
    for computed in range(1, 2000):
        kept = set(range(-(-computed // 64))) - set(mode.droppable(computed))
        spans = mode.pattern.spans(computed, 1).ranges
        seen = {key // 64 for begin, end, _ in spans for key in range(begin, end - 1)}
        assert seen <= kept
        assert len(kept) * 64 <= mode.held + 64


def test_a_million_positions_later_streaming_says_the_same(model) -> None:
    """Windows far from the start: only distances matter, however large the positions are."""
    ops, weights = model
    mode, window, answers = StreamingMode(window=128), 448, []
    for first in (192, 64 * 15_625):
        pool = ops.new_pool(2, 2, 64, 16)
        cache = PagedCache(pool, [0])
        attention = ops.cached_attention([(cache, 64)], [mode.pattern])
        forward(weights, IDS[:64], mode.positions(0, 64), attention, ops)
        cache.pages += [DROPPED] * (first // 64 - 1) + list(range(1, 9))
        cache.length = first
        # The first rows see what was never there: only rows a window later are compared.
        pattern = mode.pattern
        rows = []
        for page in (first // 64 - 2, first // 64 - 1):
            cache.pages[page] = 15  # zeros, before the first
        for begin in range(first, first + window, 64):
            attention = ops.cached_attention([(cache, 64)], [pattern])
            ids = IDS[100 + begin - first :][:64]
            hidden = forward(weights, ids, mode.positions(begin, 64), attention, ops).final
            rows.append(np.asarray(ops.to_numpy(hidden)))
        answers.append(np.concatenate(rows)[-64:])
    assert np.abs(answers[0] - answers[1]).max() < 2e-3


def test_sparse_with_room_for_all_is_dense(model) -> None:
    mode = SparseMode(1000, PageBudget(share=1.0)).for_prompt(161)
    found = with_mode(model, mode, [64, 64, 33])
    assert np.allclose(found, with_mode(model, DenseMode(1000), [100, 61]), atol=1e-5)


def test_sparse_rows_see_the_pages_that_were_chosen(model) -> None:
    """Against the definition, with the choice of the first layer and of a model of one."""
    ops, weights = model
    one = replace(weights, config=replace(CONFIG, num_hidden_layers=1), blocks=weights.blocks[:1])
    budget = PageBudget(share=0.3, least=3, recent=2)
    chosen: list[np.ndarray] = []

    class Noted(SparsePrompt):
        def seen_pages(self, *args):
            chosen.append(super().seen_pages(*args))
            return chosen[-1]

    prompt = Noted(budget, 640)
    cache = PagedCache(ops.new_pool(1, 2, 64, 11), list(range(11)))
    found = []
    for start in range(0, 640, 128):
        attention = ops.cached_attention([(cache, 128)], [prompt])
        ids, positions = IDS[start : start + 128], np.arange(start, start + 128)
        found.append(np.asarray(ops.to_numpy(forward(one, ids, positions, attention, ops).final)))
    seen = np.zeros((10, 10), bool)
    for block, pages in enumerate(chosen):
        seen[2 * block : 2 * block + 2, : pages.shape[1]] = pages
    assert (seen.sum(1) == np.minimum(np.arange(10) + 1, [3] * 10)).all()
    assert seen[:, 0].all() and seen.diagonal().all() and seen.diagonal(-1).all()
    wanted = by_definition((ops, one), 640, lambda i, j: i - j, lambda i, j: seen[i // 64, j // 64])
    assert np.allclose(np.concatenate(found), wanted, atol=2e-4)


def test_sparse_bits_do_not_depend_on_the_chunks(model) -> None:
    budget = PageBudget(share=0.3, least=3, recent=2)
    texts = [
        with_mode(model, SparseMode(1000, budget).for_prompt(650), counts)
        for counts in ([64] * 10 + [10], [640, 10], [128, 384, 128, 3, 7])
    ]
    if isinstance(model[0], NumpyOperations) and type(model[0]) is not NumpyOperations:
        assert texts[0].tobytes() == texts[1].tobytes() == texts[2].tobytes()
    assert np.allclose(texts[0], texts[1], atol=1e-4)


def test_the_page_that_a_head_looks_for_is_chosen() -> None:
    random = np.random.default_rng(0)
    means = random.normal(size=(1000, 2, 64)).astype(np.float32)
    query = random.normal(size=(64, 4, 64)).astype(np.float32)
    query[16:32, 3] = 4 * means[321, 1]  # a quarter of the rows of one head
    seen = chosen_pages(query, means, 999, PageBudget(share=0.05, least=32))
    assert seen.sum() == 50 and seen[0, [0, 321, 996, 997, 998, 999]].all()


def test_modes_fit_the_model_and_the_memory() -> None:
    modes = attention_modes(CONFIG, window=4096, pages=1000)
    assert modes["streaming"].held == 256 - 64 + 128
    assert attention_modes(CONFIG, 4096, pages=6)["streaming"].held == 128 + 128
    assert (modes["dense"].longest, modes["dual-chunk"].longest) == (256, 1024)
    assert len({mode.name for mode in modes.values()}) == len(modes)
