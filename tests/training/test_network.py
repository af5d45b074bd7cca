"""The trainable network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.qwen3 import forward
from fourbee.model.weights import tensor_shapes
from fourbee.training.network import TrainableQwen3, recomputed_block
from fourbee.training.operations import TrainingOperations

from .test_losses import CONFIG


@pytest.fixture
def model() -> TrainableQwen3:
    return TrainableQwen3(CONFIG, seed=1)


def equal(one: TrainableQwen3, other: TrainableQwen3) -> bool:
    pairs = zip(one.named_tensors().items(), other.named_tensors().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# ---- parameters


def test_parameters_have_the_checkpoints_names_and_shapes(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_tensors().items()}
    assert shapes == tensor_shapes(CONFIG)
    assert {tensor.dtype for tensor in model.named_tensors().values()} == {torch.float32}
    assert len(list(model.parameters())) == len(shapes)


def test_matrices_start_random_by_seed_and_norms_at_one(model):
    assert equal(model, TrainableQwen3(CONFIG, seed=1))
    assert not equal(model, TrainableQwen3(CONFIG, seed=2))
    for name, tensor in model.named_tensors().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            assert tensor.std().item() == pytest.approx(CONFIG.initializer_range, rel=0.2)


def test_its_forward_is_the_one_that_serves(model):
    ops = TorchOperations("cpu", torch.float32)
    ids, positions = torch.tensor([3, 1, 4, 1]), torch.arange(4)
    with torch.no_grad():
        found = model(ids, positions, DocumentAttention([4]), ops)
        served = forward(model.weights(), ids, positions, DocumentAttention([4]), ops).final
    assert torch.equal(found, served)


def test_a_reward_models_vector_is_drawn_and_its_head_is_not_trained():
    config = replace(CONFIG, tie_word_embeddings=False)
    model = TrainableQwen3(config, seed=1, scored=True)
    vector = model.all_tensors()["score.weight"]
    assert vector.shape == (1, CONFIG.hidden_size)
    assert vector.std().item() == pytest.approx((CONFIG.hidden_size + 1) ** -0.5, rel=0.3)
    assert set(model.all_tensors()) - set(model.trained_tensors()) == {"lm_head.weight"}
    hidden = torch.randn(5, CONFIG.hidden_size)
    torch.testing.assert_close(model.score(hidden), hidden @ vector[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_layers_have_the_same_bits_and_keep_less(dtype):
    ops = TrainingOperations("cpu", dtype)
    lengths = [70, 30, 71]
    ids = torch.randint(0, CONFIG.vocab_size, (171,), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in lengths])
    results, kept = [], []
    for run_block in (None, recomputed_block):
        model = TrainableQwen3(CONFIG, seed=1)
        model.run_block = run_block
        sizes: dict[int, int] = {}

        def note(one: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
            return one

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            hidden = model(ids, positions, DocumentAttention(lengths), ops)
        hidden.float().square().sum().backward()
        results.append([hidden, *(one.grad for one in model.trained_tensors().values())])
        kept.append(sum(sizes.values()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert kept[1] < 0.7 * kept[0]
