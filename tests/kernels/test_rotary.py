"""Angles of rotary positions: a row's own position alone decides its bits, in every backend."""

from __future__ import annotations

import numpy as np
import pytest

from fourbee.kernels.backends import open_operations
from fourbee.kernels.operations import WIDE_POSITIONS, Operations
from fourbee.model.attention_modes import MODES, attention_modes
from fourbee.model.config import Qwen3Config

FREQUENCIES = np.float32(1) / np.float32(1e6) ** (np.arange(0, 128, 2, dtype=np.float32) / 128)


@pytest.fixture(params=["native", "numpy", "torch"])
def ops(request) -> Operations:
    return open_operations(request.param, "cpu", "float32", "float32", head_dim=128)


def tables(ops: Operations, positions) -> np.ndarray:
    """Cosines and sines `[2, Q, T, K/2]`."""
    rotary = ops.rotary(FREQUENCIES, np.asarray(positions), 1.0)
    return np.stack([ops.to_numpy(rotary.cos), ops.to_numpy(rotary.sin)])


@pytest.mark.parametrize("most", [2_000, 100_000, WIDE_POSITIONS, 2 * WIDE_POSITIONS, 2**40])
def test_rows_beside_it_change_no_bit_of_a_row(ops, most) -> None:
    random = np.random.default_rng(3)
    for rows in (2, 3, 17, 64):
        positions = random.integers(0, most, (3, rows))
        positions[:, 0] = (0, WIDE_POSITIONS - 1, WIDE_POSITIONS)  # both kinds beside each other
        together = tables(ops, positions)
        for variant, row in np.ndindex(positions.shape):
            alone = tables(ops, [[positions[variant, row]]])
            assert together[:, variant, row].tobytes() == alone.tobytes()


def test_angles_are_float32_as_in_transformers_and_float64_far_on(ops) -> None:
    places = np.array([0, 1, 1_237, WIDE_POSITIONS - 1, WIDE_POSITIONS, 10**6, 2**40 + 1])
    narrow = places.astype(np.float32)[:, None] * FREQUENCIES
    exact = places.astype(np.float64)[:, None] * FREQUENCIES
    angles = np.where(places[:, None] < WIDE_POSITIONS, narrow, exact)
    expected = np.stack([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(tables(ops, places[None])[:, 0], expected, rtol=0, atol=2e-7)
    assert np.abs(np.cos(narrow) - np.cos(exact))[-1].max() > 0.1  # float32 would be of no use


@pytest.mark.parametrize("mode", MODES)
def test_positions_of_all_modes_are_whole_numbers_of_one_type(mode) -> None:
    """Those of a step are put side by side: one that is wider would widen all."""
    config = Qwen3Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
    )  # fmt: skip
    positions = attention_modes(config, window=64, pages=8)[mode].positions(5, 300)
    assert positions.dtype == np.int64 and positions.shape[1] == 300
