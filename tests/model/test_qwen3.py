"""The network's own options: rows that go on to the head, taps, and the tree of weights."""

import numpy as np
import pytest
import torch

from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.positions import position_scheme
from fourbee.model.qwen3 import block_forward, forward
from fourbee.model.weights import named_tensors, tensor_shapes, weights_tree

from .conftest import CONFIG, UNTIED, random_tensors

OPS = TorchOperations()
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
POSITIONS = np.arange(8)


@pytest.fixture(scope="module")
def weights():
    tensors = {name: OPS.from_numpy(array) for name, array in random_tensors(CONFIG).items()}
    return weights_tree(CONFIG, tensors)


def run(weights, **options):
    return forward(weights, IDS, POSITIONS, DocumentAttention([8]), OPS, **options)


def test_rows_are_those_rows_of_the_whole(weights) -> None:
    whole = run(weights).final
    assert whole.shape == (8, CONFIG.hidden_size)
    rows = np.array([7, 0, 3])
    assert torch.allclose(run(weights, rows=rows).final, whole[rows], atol=1e-6)


def test_taps_are_the_inputs_of_their_layers(weights) -> None:
    hidden = run(weights, taps=(0, 1), rows=np.array([7]))
    assert sorted(hidden.taps) == [0, 1]
    assert torch.equal(hidden.taps[0], OPS.embed(weights.embedding, IDS))
    rotary = position_scheme(CONFIG).rotary(POSITIONS, OPS)
    first = block_forward(
        0, weights.blocks[0], CONFIG, hidden.taps[0], rotary, DocumentAttention([8]), OPS
    )
    assert torch.allclose(hidden.taps[1], first, atol=1e-6)
    assert run(weights).taps == {}


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_the_tree_and_the_names_are_inverse(config) -> None:
    names = {name: object() for name in tensor_shapes(config)}
    tree = weights_tree(config, names)
    assert named_tensors(tree) == names
    assert (tree.head.weight is tree.embedding) == config.tie_word_embeddings


def test_the_number_of_parameters_is_that_of_the_tensors() -> None:
    for config in (CONFIG, UNTIED):
        sizes = [int(np.prod(shape)) for shape in tensor_shapes(config).values()]
        assert config.num_parameters == sum(sizes)
