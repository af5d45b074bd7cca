"""Plain RoPE: what it must do to a score, whatever the implementation."""

import numpy as np
import pytest
import torch

from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.positions import RotaryPositions, position_scheme

from .conftest import CONFIG

OPS = TorchOperations()


def score(scheme: RotaryPositions, query_position: int, key_position: int) -> float:
    """The score of one fixed query and key at these positions."""
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 128, generator=random)
    rotary = scheme.rotary(np.array([query_position, key_position]), OPS)
    ones = torch.ones(128)
    queries, keys = OPS.qk_norm_rotary(
        query.expand(2, -1), key.expand(2, -1), ones, ones, 1e-6, rotary
    )
    return float(queries[0, 0, 0] @ keys[1, 0])


def test_frequencies_fall_from_1_to_almost_1_over_theta() -> None:
    frequencies = RotaryPositions(128, 5e6).inverse_frequencies
    expected = 5e6 ** (-np.arange(64) / 64)
    assert frequencies.dtype == np.float32
    assert np.allclose(frequencies, expected, rtol=1e-6)


def test_a_score_depends_on_the_distance_alone() -> None:
    scheme = RotaryPositions(128, 1e6)
    for distance in (0, 1, 100):
        near = score(scheme, distance, 0)
        for shift in (1, 1000, 10_000):
            assert score(scheme, shift + distance, shift) == pytest.approx(near, abs=2e-2)
    assert abs(score(scheme, 1, 0) - score(scheme, 100, 0)) > 0.1


def test_position_zero_turns_nothing() -> None:
    rotary = RotaryPositions(8, 1e4).rotary(np.array([0]), OPS)
    assert rotary.cos.shape == rotary.sin.shape == (1, 1, 4)
    assert (rotary.cos == 1).all() and (rotary.sin == 0).all()


def test_the_configuration_decides_the_scheme() -> None:
    scheme = position_scheme(CONFIG)
    assert np.allclose(scheme.inverse_frequencies, 1e6 ** (-np.arange(0, 8, 2) / 8), rtol=1e-6)
