"""Adapters of rows (LoRA): every backend against float64, and rows that know nothing of others'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.operations import Linear, LowRank
from fourbee.kernels.torch_ops import TorchOperations

EPS = 1e-6
WIDTH, INNER = 128, 256
needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")
BACKENDS = ["torch", "numpy", pytest.param("native", marks=needs_native)]


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


class Adapter:
    """Random low-rank matrices of the maps of a gated MLP, and of a square one."""

    def __init__(self, rng, rank: int) -> None:
        shapes = ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (WIDTH, WIDTH))
        self.pairs = [(numbers(rng, rank, d) / 8, numbers(rng, n, rank)) for n, d in shapes]

    def over(self, ops, rows) -> list[LowRank]:
        return [
            LowRank(np.array(rows, dtype=np.int64), ops.from_adapter(down), ops.from_adapter(up))
            for down, up in self.pairs
        ]

    def deltas(self, rows, count) -> list[np.ndarray]:
        """`A^T B^T` of each map for each of `count` rows, zero where the adapter is not used."""
        used = np.isin(np.arange(count), rows)[:, None, None]
        return [used * (down.astype(np.float64).T @ up.T) for down, up in self.pairs]


class Network:
    """The linears of a layer as a backend holds them, and in float64."""

    def __init__(self, ops, rng) -> None:
        self.ops = ops
        shapes = ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (WIDTH, WIDTH))
        self.dense = [numbers(rng, *shape) / 12 for shape in shapes]
        self.linears = [self._linear(matrix) for matrix in self.dense]
        self.norm = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)

    def _linear(self, matrix) -> Linear:
        array = self.ops.from_numpy(matrix)
        return Linear(array, getattr(getattr(array, "packed", None), "rotated", False))

    def run(self, x, adapters) -> list[np.ndarray]:
        """norm + gate and up; residual + square map; the MLP. Adapters are (adapter, rows)."""
        ops, (gate, up, down, square) = self.ops, self.linears
        made = [adapter.over(ops, rows) for adapter, rows in adapters]
        deltas = [[one[i] for one in made] for i in range(4)]
        own = torch.from_numpy if isinstance(ops, TorchOperations) else lambda array: array
        norm = own(self.norm)
        outs = [
            *ops.norm_linear(own(x), norm, EPS, (gate, up), deltas[:2]),
            ops.linear_residual(own(x), square, own(x), deltas[3]),
            ops.gated_mlp(own(x.copy()), norm, EPS, gate, up, down, deltas[:3]),
        ]
        return [np.asarray(out) for out in outs]

    def expected(self, x, adapters) -> list[np.ndarray]:
        gate, up, down, square = (matrix.astype(np.float64).T[None] for matrix in self.dense)
        for adapter, rows in adapters:
            more = adapter.deltas(rows, len(x))
            gate, up, down, square = gate + more[0], up + more[1], down + more[2], square + more[3]
        x = x.astype(np.float64)
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * self.norm

        def product(rows, matrices):
            return (rows[:, None] @ matrices)[:, 0]

        g, u = product(normed, gate), product(normed, up)
        return [g, u, x + product(x, square), x + product(g / (1 + np.exp(-g)) * u, down)]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), count=st.integers(0, 40), ranks=st.lists(st.integers(1, 33), max_size=3),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_adapters_of_any_rows_and_ranks_are_the_definition(backend, data, count, ranks, seed):
    rng = np.random.default_rng(seed)
    network = Network(open_operations(backend, "cpu", "float32"), rng)
    x = numbers(rng, count, WIDTH)
    rows = st.just([])
    if count:
        rows = st.lists(st.integers(0, count - 1), unique=True).map(sorted)
    adapters = [(Adapter(rng, rank), data.draw(rows)) for rank in ranks]
    found, expected = network.run(x, adapters), network.expected(x, adapters)
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one, other, rtol=1e-4, atol=1e-3 + 2e-5 * np.abs(other).max(initial=0))


@needs_native
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_rows_bits_are_its_own_and_its_adapters(quantize) -> None:
    from fourbee.kernels.native_ops import open_native

    rng = np.random.default_rng(3)
    ops = open_native("float32", quantize)
    network = Network(ops, rng)
    x, first, second = numbers(rng, 24, WIDTH), Adapter(rng, 8), Adapter(rng, 3)
    rows = [0, 3, 4, 9, 20], [1, 2, 10, 23]
    mixed = network.run(x, [(first, rows[0]), (second, rows[1])])
    plain = network.run(x, [])
    for row in range(len(x)):
        of_row = [(one, [0]) for one, its in zip((first, second), rows, strict=True) if row in its]
        alone = network.run(x[row : row + 1], of_row)
        for i, out in enumerate(mixed):
            assert out[row].tobytes() == alone[i][0].tobytes()
            assert (out[row].tobytes() == plain[i][row].tobytes()) == (not of_row)


def test_gradients_reach_adapters_and_inputs() -> None:
    ops = TorchOperations("cpu", torch.float64)
    x, down, up = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
                   for shape in ((5, 8), (2, 8), (6, 2)))  # fmt: skip
    weight = torch.randn(6, 8, dtype=torch.float64)
    rows = np.array([1, 4])

    def run(x, down, up):
        return ops.linear(x, Linear(weight), [LowRank(rows, down, up)])

    assert torch.autograd.gradcheck(run, (x, down, up))


@needs_native
def test_a_plan_refuses_adapters_and_kernels_wrong_ones() -> None:
    from fourbee.kernels import _native
    from fourbee.kernels.native_plan import Recorder, Slot

    rng = np.random.default_rng(0)
    ops = open_operations("native", "cpu", "float32")
    network, x = Network(ops, rng), numbers(rng, 4, WIDTH)
    deltas = [[one] for one in Adapter(rng, 2).over(ops, [1])]
    gate, up, down, square = network.linears
    recorder = Recorder()
    with pytest.raises(AssertionError, match="no adapters"):
        recorder.norm_linear(Slot(WIDTH), network.norm, EPS, (gate,), deltas[:1])
    with pytest.raises(AssertionError, match="no adapters"):
        recorder.linear_residual(Slot(WIDTH), square, Slot(WIDTH), deltas[3])
    with pytest.raises(AssertionError, match="no adapters"):
        recorder.gated_mlp(Slot(WIDTH), network.norm, EPS, gate, up, down, deltas[:3])
    assert not recorder.instructions
    for rows in ([4], [-1], [1, 1], [2, 1]):
        with pytest.raises(ValueError, match="rows: "):
            network.run(x, [(Adapter(rng, 2), rows)])
    weights = [ops.from_adapter(numbers(rng, *shape)).weights for shape in ((2, 64), (INNER, 2))]
    wrong = _native.Adapter(np.array([0]), *weights)
    with pytest.raises(ValueError, match="columns of down = 64: expected 128"):
        _native.linear(gate.weight.weights, x, np.empty((4, INNER), np.float32), False, [wrong])
    with pytest.raises(ValueError, match="columns of up = 64: expected 2"):
        _native.Adapter(np.array([0]), weights[0], weights[0])
