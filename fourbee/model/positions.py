"""Position schemes: which rotations a step's queries and keys get.

Plain RoPE (Su et al. 2021) now. The seam for dynamic RoPE, YaRN, ALiBi and dual-chunk attention is
`PositionScheme`: a scheme turns token positions into a `Rotary` with as many query variants as
its attention needs. What a distance does to a score beyond rotation (ALiBi) is attention's.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fourbee.kernels.operations import Array, FloatArray, Operations, Rotary
from fourbee.model.config import Qwen3Config


class PositionScheme(Protocol):
    """Turns the positions of a step's rows into rotations."""

    inverse_frequencies: FloatArray  # [K/2]

    def rotary(self, positions: Array, ops: Operations) -> Rotary:
        """Tables `[Q, T, K/2]` for positions `[Q, T]`, or `[T]` for one variant."""
        ...


class RotaryPositions:
    """Plain RoPE: angle = position / theta^(2i/K), for as many variants as there are positions."""

    def __init__(self, head_dim: int, theta: float) -> None:
        # Rounded to float32 after the power and after the division, as in training by transformers:
        # an error in the last place grows with the position, to 0.03 radians at 262,144.
        powers = np.float64(theta) ** (np.arange(0, head_dim, 2) / head_dim)
        self.inverse_frequencies: FloatArray = np.float32(1.0) / powers.astype(np.float32)

    def rotary(self, positions: Array, ops: Operations) -> Rotary:
        """Tables `[Q, T, K/2]`."""
        positions_QT = positions if positions.ndim == 2 else positions[None]
        return ops.rotary(self.inverse_frequencies, positions_QT, scale=1.0)


def position_scheme(config: Qwen3Config) -> PositionScheme:
    """The scheme that a checkpoint's configuration asks for."""
    return RotaryPositions(config.head_dim, config.rope_theta)
