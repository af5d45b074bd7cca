"""NumPy's operations and native ones against torch's on the same numbers."""

import numpy as np
import pytest
import torch

from fourbee.kernels import numpy_sampling, torch_sampling
from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.operations import HeadRequest, Linear
from fourbee.kernels.paged_cache import own_caches
from fourbee.kernels.torch_ops import TorchOperations

EPS = 1e-6
BACKENDS = [
    "numpy",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(not native_built(), reason="native operations were not built"),
    ),
]


@pytest.fixture(params=BACKENDS)
def ops(request):
    return open_operations(request.param, "cpu", "auto", "float32")


@pytest.fixture
def reference() -> TorchOperations:
    return TorchOperations("cpu", torch.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


class Both:
    """An array as this backend holds it, and as torch does."""

    def __init__(self, ops, array) -> None:
        self.ours, self.torch = ops.from_numpy(array), torch.from_numpy(array.copy())


def close(found, expected: torch.Tensor) -> bool:
    return np.allclose(found, expected.numpy(), rtol=1e-5, atol=2e-5)


def test_linears_with_norm_and_residual(ops, reference, rng) -> None:
    x, norm = numbers(rng, 7, 64), numbers(rng, 64)
    weight, square = Both(ops, numbers(rng, 48, 64)), Both(ops, numbers(rng, 64, 64))
    t = torch.from_numpy
    found = ops.norm_linear(x, norm, EPS, [Linear(weight.ours)] * 2)
    expected = reference.norm_linear(t(x), t(norm), EPS, [Linear(weight.torch)] * 2)
    assert all(close(a, b) for a, b in zip(found, expected, strict=True))
    residual = numbers(rng, 7, 64)
    kept = residual.copy()
    found = ops.linear_residual(x, Linear(square.ours), residual)
    assert close(found, reference.linear_residual(t(x), Linear(square.torch), t(kept)))
    assert np.array_equal(residual, kept)  # layers that are tapped keep their input


def test_gated_mlp(ops, reference, rng) -> None:
    x, norm = numbers(rng, 5, 64) * 3, numbers(rng, 64)
    maps = [Both(ops, numbers(rng, *shape)) for shape in ((160, 64), (160, 64), (64, 160))]
    t = torch.from_numpy
    expected = reference.gated_mlp(t(x.copy()), t(norm), EPS, *(Linear(one.torch) for one in maps))
    found = ops.gated_mlp(x.copy(), norm, EPS, *(Linear(one.ours) for one in maps))
    assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3)


def test_embedding_rotary_and_heads(ops, reference, rng) -> None:
    table = Both(ops, numbers(rng, 40, 64))
    ids = np.array([39, 0, 7, 7])
    assert close(ops.embed(table.ours, ids), reference.embed(table.torch, ids))
    frequencies = np.array([1.0, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7], dtype=np.float32)
    positions = np.array([[0, 5, 77, 1000], [1, 1, 1, 1]])
    found, expected = (one.rotary(frequencies, positions, 1.5) for one in (ops, reference))
    assert close(found.cos, expected.cos) and close(found.sin, expected.sin)
    query, key, norm = numbers(rng, 4, 64), numbers(rng, 4, 32), numbers(rng, 16)
    t = torch.from_numpy
    ours = ops.qk_norm_rotary(query, key, norm, norm, EPS, found)
    theirs = reference.qk_norm_rotary(t(query), t(key), t(norm), t(norm), EPS, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == tuple(b.shape) and close(a, b)


@pytest.mark.parametrize("counts", [[300], [1] * 5 + [295], [7, 93, 1, 199]])
def test_attention_in_chunks_beside_another_sequence(ops, reference, rng, counts) -> None:
    sizes = (2, 2, 16)
    query, key, value = (
        numbers(rng, 1, 300, 4, 16),
        numbers(rng, 300, 2, 16),
        numbers(rng, 300, 2, 16),
    )
    other = [numbers(rng, 1, 1, 4, 16), numbers(rng, 1, 2, 16), numbers(rng, 1, 2, 16)]
    caches, references = (own_caches(one, *sizes, [300, 300]) for one in (ops, reference))
    start = 0
    for count in counts:
        rows = slice(start, start + count)
        inputs = [
            np.concatenate([query[:, rows], other[0]], axis=1),
            *(np.concatenate([a[rows], b]) for a, b in ((key, other[1]), (value, other[2]))),
        ]
        ours = ops.cached_attention([(caches[0], count), (caches[1], 1)])
        theirs = reference.cached_attention([(references[0], count), (references[1], 1)])
        for layer in range(2):
            found = ours(layer, *inputs)
            assert close(found, theirs(layer, *map(torch.from_numpy, inputs)))
        start += count
    assert (caches[0].length, caches[1].length) == (300, len(counts))


def random_request(rng, rows: int, vocabulary: int) -> HeadRequest:
    mask = rng.integers(0, 2**32, (rows, -(-vocabulary // 32)), dtype=np.uint64).astype(np.uint32)
    return HeadRequest(
        temperature=rng.choice([0, 0.3, 1, 2], rows).astype(np.float32),
        top_k=rng.choice([0, 1, 5, 40, vocabulary, vocabulary + 1], rows),
        top_p=rng.choice([1, 0.99, 0.5, 0.01], rows).astype(np.float32),
        min_p=rng.choice([0, 0.05, 1], rows).astype(np.float32),
        seed=rng.integers(0, 2**63, rows).astype(np.uint64),
        position=rng.integers(0, 10_000, rows),
        num_top=int(rng.choice([0, 3, 20])),
        bias=((0, np.array([1, 3]), np.array([5.0, -5.0], dtype=np.float32)),),
        bitmask=mask if rng.random() < 0.3 else None,
    )


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_the_same_tokens_are_sampled_as_in_torch(rng, vocabulary) -> None:
    for _ in range(60):
        logits = numbers(rng, 6, vocabulary) * rng.choice([1, 5])
        request = random_request(rng, 6, vocabulary)
        ours = numpy_sampling.select_tokens(logits, request)
        theirs = torch_sampling.select_tokens(torch.from_numpy(logits.copy()), request)
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.top_ids.tolist() == theirs.top_ids.tolist()
        for name in ("logprobs", "logsumexp", "top_logprobs"):
            assert np.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4)


def test_rows_that_are_not_finite_are_told() -> None:
    logits = np.zeros((3, 50), dtype=np.float32)
    logits[1, 7], logits[2, 7] = np.nan, np.inf
    result = numpy_sampling.select_tokens(logits, random_request(np.random.default_rng(0), 3, 50))
    assert result.finite.tolist() == [True, False, False]


def test_nothing_to_do_is_done(ops) -> None:
    empty = np.empty((0, 64), np.float32)
    weight = ops.from_numpy(np.ones((16, 64), np.float32))
    targets = np.array([], dtype=np.int64)
    assert ops.token_logprobs(empty, Linear(weight), targets, 2).top_ids.shape == (0, 2)
