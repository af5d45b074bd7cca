"""Rows between products: natively the numbers and gradients of the formulas, for all shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fourbee.kernels.backends import native_built
from fourbee.training import rows

pytestmark = pytest.mark.skipif(not native_built(), reason="the native kernels were not built")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> bool:
    assert found.dtype == torch.float32
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


@pytest.mark.parametrize("shape", [(1, 16), (65, 48), (130, 7), (200, 33), (3, 5, 32)])
def test_norm(shape):
    x, weight, grad = drawn(*shape), drawn(shape[-1]), drawn(*shape) * 2
    wide = [one.double().requires_grad_() for one in (x, weight)]
    expected = rms_norm(*wide)
    expected.backward(grad.double())
    assert close(rows.norm(x, weight, 1e-6, torch.float32), expected.detach())
    for found, one in zip(rows.norm_gradient(grad, x, weight, 1e-6), wide, strict=True):
        assert close(found, one.grad)


@pytest.mark.parametrize(("count", "heads", "size"), [(1, 1, 16), (70, 3, 32), (65, 2, 10)])
def test_norm_and_rotation_of_heads(count, heads, size):
    x, weight, grad = drawn(count, heads * size), drawn(size), drawn(count, heads, size)
    angles = drawn(count, size // 2)
    cos, sin = angles.cos(), angles.sin()
    wide = [one.double().requires_grad_() for one in (x, weight)]
    first, second = rms_norm(wide[0].view(count, heads, size), wide[1]).chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    expected = torch.cat((first * c - second * s, second * c + first * s), -1)
    expected.backward(grad.double())
    assert close(rows.norm_rotary(x, weight, cos, sin, 1e-6), expected.detach())
    gradients = rows.norm_rotary_gradient(grad, x, weight, cos, sin, 1e-6)
    for found, one in zip(gradients, wide, strict=True):
        assert close(found, one.grad)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (37, 83), (300, 128)])
def test_gated(shape):
    gate, up, grad = 3 * drawn(*shape), drawn(*shape) + 1, drawn(*shape) * 2
    wide = [one.double().requires_grad_() for one in (gate, up)]
    expected = F.silu(wide[0]) * wide[1]
    expected.backward(grad.double())
    assert close(rows.gated(gate, up), expected.detach())
    *gradients, again = rows.gated_gradient(grad, gate, up)  # all three are overwritten
    for found, one in zip((*gradients, again), (*wide, expected), strict=True):
        assert close(found, one.grad if one.is_leaf else one.detach())


def test_extremes_stay_finite_and_nan_stays_nan():
    gate = torch.tensor([-1e4, -88.0, 0.0, 88.0, 1e4, torch.nan])
    found = rows.gated(gate, torch.ones(6))
    assert torch.isfinite(found[:5]).all() and found[5].isnan()
    *gradients, _ = rows.gated_gradient(torch.ones(6), gate.clone(), torch.ones(6))
    for one in gradients:
        assert torch.isfinite(one[:5]).all() and one[5].isnan()


def test_bits_do_not_depend_on_threads():
    x, weight, grad = drawn(500, 64), drawn(64), drawn(500, 64) + 1
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            rows.follow_threads()
            gated = rows.gated_gradient(grad.clone(), x.clone(), x.clone())
            results.append([*rows.norm_gradient(grad, x, weight, 1e-6), *gated])
    finally:
        torch.set_num_threads(threads)
        rows.follow_threads()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_second_backward_pass_is_refused():
    from fourbee.kernels.operations import Linear
    from fourbee.training.operations import TrainingOperations

    ops = TrainingOperations("cpu", torch.float32)
    x, norm = drawn(4, 16).requires_grad_(), torch.ones(16)
    maps = (Linear(drawn(32, 16)), Linear(drawn(32, 16)), Linear(drawn(16, 32)))
    loss = ops.gated_mlp(x, norm, 1e-6, *maps).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_the_kernels_it_is_torch(monkeypatch):
    x, weight = drawn(5, 16), drawn(16)
    natively = rows.norm(x, weight, 1e-6, torch.float32)
    monkeypatch.setattr(rows, "native", None)
    assert close(rows.norm(x, weight, 1e-6, torch.float32), natively)
    gate, up, grad = drawn(5, 16), drawn(5, 16), drawn(5, 16)
    rows.gated_gradient(grad, gate, up)
    assert rows.gated(gate, up).shape == (5, 16)
