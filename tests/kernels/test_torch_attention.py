"""Attention: caches filled in any chunks, and packed documents, against the formula in float64."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from fourbee.kernels.paged_cache import PagedCache, own_cache
from fourbee.kernels.torch_attention import DocumentAttention

LAYERS, HEADS, GROUPS, SIZE = 2, 4, 2, 8


@pytest.fixture
def inputs(random):
    """Queries, keys and values of 300 positions, more than a cache's first growth."""
    rows = 300
    return random(1, rows, HEADS, SIZE), random(rows, GROUPS, SIZE), random(rows, GROUPS, SIZE)


def part(inputs, rows: slice):
    query, key, value = inputs
    return query[:, rows], key[rows], value[rows]


def attention64(query, key, value) -> torch.Tensor:
    """Causal attention of one sequence written out, `[T, H*K]`."""
    query, key, value = query[0].double(), key.double(), value.double()
    rows, heads, size = query.shape
    key = key.repeat_interleave(heads // key.shape[1], dim=1)
    value = value.repeat_interleave(heads // value.shape[1], dim=1)
    scores = torch.einsum("thk,shk->hts", query, key) / size**0.5
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hts,shk->thk", weights, value).reshape(rows, heads * size)


def run(ops, cache, inputs, counts) -> torch.Tensor:
    """Both layers over the sequence in chunks of `counts` rows; the last layer's context."""
    contexts, start = [], 0
    for count in counts:
        attention = ops.cached_attention([(cache, count)])
        for layer in range(LAYERS):
            context = attention(layer, *part(inputs, slice(start, start + count)))
        contexts.append(context)
        start += count
    return torch.cat(contexts)


@pytest.mark.parametrize(
    "counts",
    [[300], [1] * 300, [255, 1, 1, 43], [256, 44], [7, 93, 1, 199]],
    ids=["whole", "one-by-one", "over-the-edge", "to-the-edge", "chunks"],
)
def test_a_cache_filled_in_any_chunks_gives_the_whole_answer(ops, inputs, counts) -> None:
    cache = own_cache(ops, LAYERS, GROUPS, SIZE)
    found = run(ops, cache, inputs, counts)
    assert cache.length == 300 <= cache.capacity
    assert torch.allclose(found.double(), attention64(*inputs), atol=1e-5)


def test_the_length_moves_on_with_the_last_layer_only(ops, inputs) -> None:
    cache = own_cache(ops, LAYERS, GROUPS, SIZE)
    attention = ops.cached_attention([(cache, 5)])
    attention(0, *part(inputs, slice(5)))
    assert cache.length == 0
    attention(1, *part(inputs, slice(5)))
    assert cache.length == 5


def test_sequences_of_a_step_do_not_see_each_other(ops, inputs) -> None:
    # Prefill, decode and continued prefill in one step; row ranges are the sequences' own.
    ranges = [slice(0, 40), slice(40, 71), slice(71, 100)]
    filled = [0, 30, 10]  # positions that are in the cache before the step
    caches = []
    for rows, before in zip(ranges, filled, strict=True):
        cache = own_cache(ops, LAYERS, GROUPS, SIZE)
        if before:
            run(ops, cache, part(inputs, slice(rows.start, rows.start + before)), [before])
        caches.append(cache)
    counts = [rows.stop - rows.start - before for rows, before in zip(ranges, filled, strict=True)]
    new = torch.cat(
        [
            torch.arange(rows.start + before, rows.stop)
            for rows, before in zip(ranges, filled, strict=True)
        ]
    )
    query, key, value = inputs
    attention = ops.cached_attention(list(zip(caches, counts, strict=True)))
    for layer in range(LAYERS):
        found = attention(layer, query[:, new], key[new], value[new])
    alone = [
        attention64(*part(inputs, rows))[before:]
        for rows, before in zip(ranges, filled, strict=True)
    ]
    assert torch.allclose(found.double(), torch.cat(alone), atol=1e-5)
    assert [cache.length for cache in caches] == [40, 31, 29]


def test_shared_pages_go_their_own_ways_from_a_copy_on(ops, inputs) -> None:
    cache = own_cache(ops, LAYERS, GROUPS, SIZE)
    run(ops, cache, inputs, [90])
    pool = cache.pool
    pool.copy(1, 50)
    fork = PagedCache(pool, [0, 50], 80)
    query, key, value = inputs
    other = torch.cat((torch.arange(80), torch.arange(200, 230)))
    found = run(ops, fork, (query[:, other[80:]], key[other[80:]], value[other[80:]]), [30])
    expected = attention64(query[:, other], key[other], value[other])[80:]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    found = run(ops, cache, part(inputs, slice(90, 100)), [10])
    expected = attention64(*part(inputs, slice(100)))[90:]
    assert torch.allclose(found.double(), expected, atol=1e-5)


def write(data: bytes, page: memoryview) -> bool:
    page[:] = data
    return True


def test_pages_are_read_and_written_whole(ops, inputs) -> None:
    cache = own_cache(ops, LAYERS, GROUPS, SIZE)
    run(ops, cache, inputs, [70])
    pool = cache.pool
    pages = [bytes(pool.read(page)) for page in (0, 1)]
    assert [len(page) for page in pages] == [pool.page_bytes] * 2
    for page, data in zip((9, 7), pages, strict=True):
        assert pool.fill(page, partial(write, data))
    moved = PagedCache(pool, [9, 7], 70)
    for one in (0, 1):
        pool.clear(one)
    found = run(ops, moved, part(inputs, slice(70, 80)), [10])
    expected = attention64(*part(inputs, slice(80)))[70:]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert bytes(pool.read(0)) == bytes(pool.page_bytes)


def test_packed_documents_equal_each_alone_in_values_and_gradients(inputs) -> None:
    lengths = [1, 17, 64, 2, 16]
    packed = [tensor.clone().requires_grad_() for tensor in part(inputs, slice(100))]
    alone = [tensor.clone().requires_grad_() for tensor in part(inputs, slice(100))]
    upstream = torch.linspace(-1, 1, 100 * HEADS * SIZE).view(100, -1)
    context = DocumentAttention(lengths)(0, *packed)
    (context * upstream).sum().backward()
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        one = DocumentAttention([length])(0, *part(alone, rows))
        expected = attention64(*part(inputs, rows))
        assert torch.allclose(context[rows].double(), expected, atol=1e-5)
        assert (context[rows] - one).abs().max() <= 1e-6
        (one * upstream[rows]).sum().backward()
        start += length
    for together, single in zip(packed, alone, strict=True):
        assert (together.grad - single.grad).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [
        ([16] * 4, 1),  # as they are
        ([9, 40, 9, 41, 12], 2),  # out of order, padded
        ([5, 90, 5], 2),  # unlike
        ([1, 1, 2], 1),
    ],
)
def test_documents_of_like_lengths_are_attended_together(inputs, lengths, calls) -> None:
    rows = slice(sum(lengths))
    packed = [tensor.clone().requires_grad_() for tensor in part(inputs, rows)]
    truth = [tensor.clone().double().requires_grad_() for tensor in part(inputs, rows)]
    attention = DocumentAttention(lengths)
    assert len(attention.shapes) == calls
    upstream = torch.linspace(-1, 1, rows.stop * HEADS * SIZE).view(rows.stop, -1)
    (attention(0, *packed) * upstream).sum().backward()
    starts = np.cumsum([0, *lengths])
    spans = [slice(*pair) for pair in itertools.pairwise(starts)]
    expected = torch.cat([attention64(*part(truth, span)) for span in spans])
    (expected * upstream).sum().backward()
    for one, other in zip(packed, truth, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_document_sees_another(inputs, dtype) -> None:
    """Not even with NaN in one: neither in values nor in gradients."""
    lengths = [9, 40, 9, 41, 12]
    clean = [one.to(dtype) for one in part(inputs, slice(111))]
    spoiled = [one.clone() for one in clean]
    for one in spoiled:
        one[..., 9:49, :, :] = torch.nan  # the second document
    results = []
    for given in (clean, spoiled):
        copies = [one.clone().requires_grad_() for one in given]
        context = DocumentAttention(lengths)(0, *copies)
        context.float().square().sum().backward()
        query, key, value = (one.grad for one in copies)
        results.append([context, query[0], key, value])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one[:9], other[:9]) and torch.equal(one[49:], other[49:])
        assert other[9:49].isnan().any()


def test_document_gradients_are_those_of_the_formula(inputs) -> None:
    ours = [tensor.clone().requires_grad_() for tensor in part(inputs, slice(20))]
    theirs = [tensor.clone().double().requires_grad_() for tensor in part(inputs, slice(20))]
    DocumentAttention([20])(0, *ours).square().sum().backward()
    attention64(*theirs).square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-4)
