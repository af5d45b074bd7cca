"""The operations contract: what a backend offers to the one definition of the network.

Pure functions of arrays, except where a line says what may be overwritten. An `Array` is whatever
the backend works on (a torch tensor, a NumPy array, a packed matrix): nothing outside `kernels`
looks inside one. This file holds the contract only; `torch_ops.py` is the reference that every
other backend is tested against.

Shape legend: T rows (tokens of all sequences of a step, one after another), D hidden width,
H query heads, G key-value heads, K head dimension, N any output width, R rows that go on to the
head, V vocabulary, Q query variants (1 for plain rotary positions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fourbee.kernels.attention_pattern import AttentionPattern
    from fourbee.kernels.packed import PackedMatrix
    from fourbee.kernels.paged_cache import KvPages, PagedCache

Array = Any
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

# Positions whose angles need more than float32: beyond what the models are trained for.
WIDE_POSITIONS = 2**18


@dataclass(frozen=True)
class Linear:
    """One linear map `y = x W^T`: W is `[N, D]`, dense or packed as the backend likes it."""

    weight: Array
    # True when W was multiplied by the Hadamard-128 rotation, so that x has to be, too.
    rotated: bool = False


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one linear (LoRA, Hu et al. 2021): `x A^T B^T` for its rows.

    `down` is A `[r, D]` and `up` is B `[N, r]`, its scale within, as `from_adapter` gives them.
    `rows` are of the T rows and ascend; the other rows keep their bits.
    """

    rows: IntArray
    down: Array
    up: Array


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of one step, `[Q, T, K/2]` each: a query variant a row of Q."""

    cos: Array
    sin: Array


class Attention(Protocol):
    """Attention of one step over all its sequences, called once a layer.

    Stores `key_TGK` and `value_TGK` where it keeps them, attends with `query_QTHK`, and returns
    the context `[T, H*K]`. It knows which rows belong to which sequence; the model does not.
    Keys arrive rotated once and are never rotated again: schemes that need another distance ask
    for another variant of the query. The softmax runs over all keys that a row sees, in order of
    position, whichever variant scores them; `kernels/attention_pattern.py` says what a row sees.
    """

    def __call__(
        self, layer: int, query_QTHK: Array, key_TGK: Array, value_TGK: Array
    ) -> Array: ...


@dataclass(frozen=True)
class HeadRequest:
    """How R rows are turned into tokens. Arrays have one entry a row.

    `bias` lists `(row, token_ids, values)` added to the logits (penalties, logit_bias); `bitmask`
    is `[R, ceil(V/32)]` uint32, a zero bit forbids the token (grammars). Both come before top-k.
    """

    temperature: FloatArray  # 0 = greedy
    top_k: IntArray  # 0 = off
    top_p: FloatArray  # 1 = off
    min_p: FloatArray  # 0 = off
    seed: npt.NDArray[np.uint64]
    position: IntArray  # of the token being sampled: the counter of its randomness
    num_top: int = 0  # how many of the likeliest tokens are reported a row
    bias: tuple[tuple[int, IntArray, FloatArray], ...] = ()
    bitmask: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True)
class HeadResult:
    """The sampled token of each row, and log-probabilities of the model itself.

    Log-probabilities are taken from the plain logits, before bias, temperature and truncation.
    `finite` is False for a row whose logits hold NaN or infinity: its token means nothing.
    """

    token_ids: IntArray  # [R]
    logprobs: FloatArray  # [R]
    logsumexp: FloatArray  # [R]
    top_ids: IntArray  # [R, num_top], likeliest first, each id once
    top_logprobs: FloatArray  # [R, num_top]
    finite: npt.NDArray[np.bool_]  # [R]


class Operations(Protocol):
    """What the network, the loader and the engine ask of a backend."""

    @property
    def backend(self) -> Literal["native", "torch", "numpy"]:
        """Whose operations they are."""
        ...

    @property
    def gpu_bytes(self) -> int | None:
        """What is free of the GPU's memory that arrays lie in; None on a CPU."""
        ...

    @property
    def numerics(self) -> str:
        """A name for everything that decides the bits of its results, besides what it is given."""
        ...

    def from_numpy(self, array: npt.NDArray[Any], table: bool = False) -> Array:
        """A backend array in the compute type; the NumPy array may be read-only and is not kept.

        `table`: the embedding or the head, which a backend that quantises keeps in more bits.
        """
        ...

    def from_adapter(self, matrix: npt.NDArray[Any]) -> Array:
        """A matrix of an adapter; it is small and never quantised."""
        ...

    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        """A NumPy copy; bfloat16 comes as `ml_dtypes.bfloat16`."""
        ...

    def embed(self, table: Array, token_ids: Array) -> Array:
        """Rows `[T, D]` of `table` `[V, D]` for integer ids `[T]`."""
        ...

    def rotary(self, inverse_frequencies: FloatArray, positions: Array, scale: float) -> Rotary:
        """Tables for positions `[Q, T]` and frequencies `[K/2]`; values times `scale`.

        Angles are float32, as in transformers: their errors grow with the position. From
        `WIDE_POSITIONS` on they are float64, so that a row's own position alone decides.
        """
        ...

    def norm(self, x_TD: Array, weight_D: Array, eps: float) -> Array:
        """RMSNorm (Zhang & Sennrich 2019): `x / sqrt(mean(x^2) + eps) * weight`, in float32."""
        ...

    def norm_linear(
        self,
        x_TD: Array,
        norm_D: Array,
        eps: float,
        linears: Sequence[Linear],
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> tuple[Array, ...]:
        """RMSNorm, then each linear with its adapters: a tuple of `[T, N_i]`."""
        ...

    def qk_norm_rotary(
        self,
        query_TN: Array,
        key_TN: Array,
        query_norm_K: Array,
        key_norm_K: Array,
        eps: float,
        rotary: Rotary,
    ) -> tuple[Array, Array]:
        """RMSNorm a head, then the rotation: `query_QTHK`, `key_TGK` (variant 0 for the key)."""
        ...

    def linear_residual(
        self, x_TN: Array, linear: Linear, residual_TD: Array, delta: Sequence[LowRank] = ()
    ) -> Array:
        """`residual + x W^T`, and adapters', `[T, D]`; a new array: taps hold the residual."""
        ...

    def gated_mlp(
        self,
        residual_TD: Array,
        norm_D: Array,
        eps: float,
        gate: Linear,
        up: Linear,
        down: Linear,
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> Array:
        """SwiGLU block with its norm and residual; may overwrite `residual_TD`.

        `deltas` are the adapters of gate, up and down, each added before the map's epilogue.
        """
        ...

    def select_rows(self, x_TD: Array, rows: Array) -> Array:
        """Rows `[R, D]` of `x_TD`."""
        ...

    def new_pool(self, layers: int, kv_heads: int, head_dim: int, pages: int) -> KvPages:
        """Storage for keys and values. UsageError for a width that the backend does not have;
        CapacityError where the memory cannot be had."""
        ...

    def cached_attention(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> Attention:
        """Attention of a step whose rows are, in order, `count` new rows of each cache.

        The new rows follow the cache's filled positions, on pages that it has already; they are
        written there, and `length` moves on.
        `patterns`: for each cache what its rows see; None for all keys up to their own. `slopes`
        `[H]`: `slope * distance` is taken off every score (ALiBi, Press et al. 2021).
        """
        ...

    def head(self, hidden_RD: Array, head: Linear, request: HeadRequest) -> HeadResult:
        """Logits, truncation and the sampled token of each row.

        Sampling is Gumbel-max over counter-based noise: noise depends on (seed, position, token
        id) alone, so that a row's token does not depend on the batch that it sits in.
        """
        ...

    def token_logprobs(
        self, hidden_RD: Array, head: Linear, targets: IntArray, num_top: int
    ) -> HeadResult:
        """Log-probability of each row's given target instead of a sampled token (echo)."""
        ...


class StepInterrupted(Exception):
    """A network was told to end early: nothing that it was to compute is there."""


class Network(Protocol):
    """What a step computes, the weights within: hidden states `[R, D]` of the rows that go on."""

    def __call__(
        self, ops: Any, token_ids: IntArray, positions: Array, attention: Any, rows: IntArray
    ) -> Array: ...


@runtime_checkable
class PlanningOperations(Protocol):
    """What operations have beside `Operations` if they can record a network and replay it."""

    @property
    def rounds_keys(self) -> bool:
        """Whether keys are kept in so few bits that they should be smoothed first."""
        ...

    def planned(self, network: Network) -> Network:
        """The same network, recorded: the same bits with less between the kernels."""
        ...

    def interrupt(self) -> None:
        """From any thread: the recorded network that runs, or else the next one, ends early.

        It raises StepInterrupted after the operation at hand.
        """
        ...


@runtime_checkable
class PackedOperations(Protocol):
    """What operations have beside `Operations` if they compute with packed matrices."""

    @property
    def keeps_formats(self) -> bool:
        """Whether matrices of other quantised formats stay as they are; False to requantise."""
        ...

    def from_packed(self, packed: PackedMatrix) -> Array:
        """A backend array over the matrix, whose bytes may be read-only and are kept.

        `embed` undoes the rotation of a rotated table; linears of one are `rotated`.
        """
        ...
