"""Each operation against its formula, written out in float64."""

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations, hadamard_128

EPS = 1e-6


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to float32's precision."""
    return torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def norm64(x, weight):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def test_bfloat16_goes_in_and_out_bit_equal() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    ops = TorchOperations("cpu", torch.bfloat16)
    tensor = ops.from_numpy(every)
    assert tensor.dtype == torch.bfloat16
    back = ops.to_numpy(tensor)
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tobytes() == every.tobytes()


@pytest.mark.parametrize("given", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_arrive_in_the_compute_type(ops, given) -> None:
    tensor = ops.from_numpy(np.array([1.5, -2.0], dtype=given))
    assert tensor.dtype == torch.float32 and tensor.tolist() == [1.5, -2.0]


def test_arrays_are_copied_both_ways(ops) -> None:
    array = np.ones(3, dtype=np.float32)
    tensor = ops.from_numpy(array)
    array[:] = 2
    back = ops.to_numpy(tensor)
    tensor[:] = 3
    assert back.tolist() == [1, 1, 1]
    array.flags.writeable = False
    assert ops.from_numpy(array).tolist() == [2, 2, 2]


def test_embed_and_select_rows_take_arrays_of_either_kind(ops, random) -> None:
    table = random(10, 4)
    ids = [3, 0, 3]
    for indices in (np.array(ids), torch.tensor(ids)):
        assert torch.equal(ops.embed(table, indices), table[ids])
        assert torch.equal(ops.select_rows(table, indices), table[ids])


def test_norm_is_rms_norm(ops, random) -> None:
    x, weight = random(5, 256) * 10, random(256)
    assert close(ops.norm(x, weight, EPS), norm64(x, weight))
    assert torch.equal(ops.norm(torch.zeros(1, 8), torch.ones(8), EPS), torch.zeros(1, 8))


def test_norm_linear_norms_once_for_all_maps(ops, random) -> None:
    x, norm = random(5, 64), random(64)
    maps = [Linear(random(width, 64)) for width in (32, 16, 16)]
    for found, one in zip(ops.norm_linear(x, norm, EPS, maps), maps, strict=True):
        assert close(found, norm64(x, norm) @ one.weight.double().T)


def test_linear_residual_adds_the_residual(ops, random) -> None:
    x, linear, residual = random(5, 32), Linear(random(64, 32)), random(5, 64)
    expected = residual.double() + x.double() @ linear.weight.double().T
    assert close(ops.linear_residual(x, linear, residual.clone()), expected)


def test_gated_mlp_is_swiglu_with_norm_and_residual(ops, random) -> None:
    residual, norm = random(5, 64), random(64)
    gate, up, down = (Linear(random(*shape)) for shape in ((96, 64), (96, 64), (64, 96)))
    normed = norm64(residual, norm)
    gated = F.silu(normed @ gate.weight.double().T) * (normed @ up.weight.double().T)
    expected = residual + gated @ down.weight.double().T
    found = ops.gated_mlp(residual.clone(), norm, EPS, gate, up, down)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-3)


def test_qk_norm_rotary_norms_each_head_and_then_turns_it(ops, random) -> None:
    heads, groups, size, rows = 4, 2, 8, 3
    query, key = random(rows, heads * size), random(rows, groups * size)
    query_norm, key_norm = random(size), random(size)
    angles = random(2, rows, size // 2)  # two query variants
    rotary = type("Rotary", (), {"cos": angles.cos(), "sin": angles.sin()})
    found_query, found_key = ops.qk_norm_rotary(query, key, query_norm, key_norm, EPS, rotary)
    assert found_query.shape == (2, rows, heads, size) and found_key.shape == (rows, groups, size)

    def turned(x, weight, angle):
        # Pairs (i, i + K/2) as complex numbers, multiplied by e^(i angle).
        normed = norm64(x.view(rows, -1, size), weight)
        pairs = torch.complex(*normed.chunk(2, dim=-1)) * torch.polar(
            torch.ones_like(angle).double(), angle.double()
        ).unsqueeze(1)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    for variant in range(2):
        assert close(found_query[variant], turned(query, query_norm, angles[variant]))
    assert close(found_key, turned(key, key_norm, angles[0]))


def test_rotary_tables_are_scaled_cosines_and_sines(ops) -> None:
    frequencies = np.array([1.0, 0.25], dtype=np.float32)
    positions = np.array([[0, 7], [3, 262_143]])
    rotary = ops.rotary(frequencies, positions, scale=0.5)
    angles = positions[..., None] * frequencies.astype(np.float64)
    assert np.allclose(rotary.cos.numpy(), 0.5 * np.cos(angles), atol=1e-6)
    assert np.allclose(rotary.sin.numpy(), 0.5 * np.sin(angles), atol=1e-6)


def test_hadamard_128_is_the_orthonormal_sylvester_matrix(random) -> None:
    sylvester = torch.ones(1, 1)
    for _ in range(7):
        sylvester = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), sylvester)
    matrix = hadamard_128(torch.eye(128))
    assert close(matrix, sylvester / 128**0.5)
    assert close(matrix @ matrix.T, torch.eye(128))
    x = random(3, 256)
    assert close(hadamard_128(x), torch.cat((x[:, :128] @ matrix, x[:, 128:] @ matrix), dim=-1))


def test_a_rotated_linear_equals_the_plain_one(ops, random) -> None:
    x, weight = random(5, 256), random(32, 256)
    plain = ops.linear(x, Linear(weight))
    assert close(ops.linear(x, Linear(hadamard_128(weight), rotated=True)), plain)


def test_no_rows_give_no_rows(ops, random) -> None:
    rotary = ops.rotary(np.ones(4, dtype=np.float32), np.zeros((1, 0), dtype=np.int64), 1.0)
    query, key = ops.qk_norm_rotary(random(0, 16), random(0, 8), random(8), random(8), EPS, rotary)
    assert query.shape == (1, 0, 2, 8) and key.shape == (0, 1, 8)
    assert hadamard_128(random(0, 256)).shape == (0, 256)
