"""TrainingOperations: the results and gradients of `TorchOperations`, for less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fourbee.kernels.operations import Linear, Rotary
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training import products
from fourbee.training.lora import AdaptedLinear
from fourbee.training.network import TrainableQwen3
from fourbee.training.operations import TrainingOperations
from fourbee.training.products import product

from .test_losses import CONFIG

ROWS, WIDTH, INNER, SIZE = 37, 48, 80, 16
PLAIN = TorchOperations("cpu", torch.float32)
OURS = TrainingOperations("cpu", torch.float32)


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return drawn.requires_grad_()


def check(run, *inputs: torch.Tensor, ours=OURS, plain=PLAIN, tolerance=1e-6) -> None:
    """Values and gradients of `run(ops, *inputs)` differ by `tolerance` of their largest."""
    results = []
    for ops in (ours, plain):
        copies = [one.detach().clone().requires_grad_(one.requires_grad) for one in inputs]
        outputs = run(ops, *copies)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((one * matrix(*one.shape, seed=9).detach()).sum() for one in outputs).backward()
        results.append([*outputs, *(one.grad for one in copies if one.requires_grad)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        largest = expected.abs().max()
        assert (found - expected).abs().max() <= tolerance * largest


def rotary(rows: int, size: int) -> Rotary:
    angles = torch.linspace(0, 50, rows)[:, None] * torch.linspace(1, 0.01, size // 2)
    return Rotary(angles.cos()[None], angles.sin()[None])


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS, 3, SIZE), (1, WIDTH)])
def test_norm(shape):
    check(lambda ops, x, w: ops.norm(x, w, 1e-6), matrix(*shape), matrix(shape[-1]))


def test_norm_of_rows_of_zeros_is_zero_with_a_finite_gradient():
    x = torch.zeros(3, WIDTH, requires_grad=True)
    check(lambda ops, x, w: ops.norm(x, w, 1e-6), x, matrix(WIDTH))


def test_linear():
    check(lambda ops, x, w: ops.linear(x, Linear(w)), matrix(ROWS, WIDTH), matrix(INNER, WIDTH))


def test_linear_with_a_frozen_weight_and_an_adapter():
    def run(ops, x, w, down, up):
        if ops is PLAIN:
            return ops.linear(x, Linear(w)) + 0.5 * x @ down.T @ up.T
        return ops.linear(x, AdaptedLinear(w, False, down, up, 0.5))

    weight = matrix(INNER, WIDTH).detach()
    check(run, matrix(ROWS, WIDTH), weight, matrix(4, WIDTH), matrix(INNER, 4))


def test_a_rotated_weight():
    check(lambda ops, x, w: ops.linear(x, Linear(w, True)), matrix(ROWS, 128), matrix(INNER, 128))


def test_norms_and_rotations_of_heads():
    heads = (matrix(ROWS, 4 * SIZE), matrix(ROWS, 2 * SIZE), matrix(SIZE), matrix(SIZE, seed=1))
    turned = rotary(ROWS, SIZE)
    check(lambda ops, q, k, a, b: ops.qk_norm_rotary(q, k, a, b, 1e-6, turned), *heads)


@pytest.mark.parametrize("adapted", [False, True])
def test_gated_mlp(adapted):
    def run(ops, x, norm, gate, up, down, a, b):
        if adapted and ops is PLAIN:
            down = down + 2.0 * b @ a
        last = AdaptedLinear(down, False, a, b, 2.0) if adapted and ops is OURS else Linear(down)
        return ops.gated_mlp(x, norm, 1e-6, Linear(gate), Linear(up), last) + 0 * (
            a.sum() + b.sum()
        )

    maps = (matrix(INNER, WIDTH), matrix(INNER, WIDTH, seed=1), matrix(WIDTH, INNER))
    adapter = matrix(4, INNER), matrix(WIDTH, 4)
    check(run, matrix(ROWS, WIDTH), matrix(WIDTH), *maps, *adapter, tolerance=2e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_network(tied):
    config = replace(CONFIG, tie_word_embeddings=tied)
    ids, positions = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([0, 1, 2, 3, 0, 1])
    gradients = []
    for ops in (OURS, PLAIN):
        model = TrainableQwen3(config, seed=1)
        logits = ops.linear(model(ids, positions, DocumentAttention([4, 2]), ops), model.head())
        logits.logsumexp(-1).sum().backward()
        gradients.append({name: one.grad for name, one in model.named_tensors().items()})
    for name, found in gradients[0].items():
        expected = gradients[1][name]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("run", ["norm", "heads", "mlp"])
def test_bfloat16_is_as_near_to_the_truth(run):
    """Of what `TorchOperations` is off in bfloat16, at most a tenth more."""
    turned = rotary(ROWS, SIZE)
    runs = {
        "norm": (lambda o, x, w: o.norm(x, w, 1e-6), matrix(ROWS, WIDTH), matrix(WIDTH)),
        "heads": (
            lambda o, q, k, w: o.qk_norm_rotary(
                q.to(o.dtype), k.to(o.dtype), w, w, 1e-6, turned
            )[0],
            matrix(ROWS, 2 * SIZE), matrix(ROWS, SIZE), matrix(SIZE),
        ),
        "mlp": (
            lambda o, x, n, g, d: o.gated_mlp(x, n, 1e-6, Linear(g), Linear(g), Linear(d)),
            matrix(ROWS, WIDTH), matrix(WIDTH), matrix(INNER, WIDTH), matrix(WIDTH, INNER),
        ),
    }  # fmt: skip
    function, *inputs = runs[run]
    errors = []
    for ops in (TrainingOperations("cpu", torch.bfloat16), TorchOperations("cpu", torch.bfloat16)):
        results = []
        for one in (ops, PLAIN):
            copies = [x.detach().clone().requires_grad_() for x in inputs]
            output = function(one, *copies)
            output.float().square().sum().backward()
            results.append(
                [output.detach().float(), *(x.grad for x in copies if x.grad is not None)]
            )
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 1.1 * theirs + 1e-6


def test_what_the_backward_pass_needs_is_less():
    """Bytes kept between the passes of a layer's MLP and norms."""

    def kept(ops) -> int:
        seen: dict[int, int] = {}
        weights = [matrix(WIDTH), matrix(INNER, WIDTH), matrix(INNER, WIDTH), matrix(WIDTH, INNER)]
        known = {one.data_ptr() for one in weights}

        def note(one: torch.Tensor) -> torch.Tensor:
            storage = one.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return one

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            linears = [Linear(one) for one in weights[1:]]
            result = ops.gated_mlp(matrix(ROWS, WIDTH), weights[0], 1e-6, *linears)
        assert result.requires_grad
        return sum(seen.values())

    assert kept(OURS) <= 0.6 * kept(PLAIN)


def test_products_without_onednn_are_torchs(monkeypatch):
    x, weight = matrix(ROWS, WIDTH).detach(), matrix(INNER, WIDTH).detach()
    expected = x.double() @ weight.double().T
    for one in (product(x, weight), product(x.T.contiguous().T, weight)):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(products, "_LINEAR", None)
    assert torch.equal(product(x, weight), x @ weight.T)
