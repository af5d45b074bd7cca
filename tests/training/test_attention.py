"""TrainingAttention: what torch's attention of documents gives, by the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch

from fourbee.kernels.backends import native_built
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.training import rows
from fourbee.training.attention import _LONGEST, TrainingAttention

pytestmark = pytest.mark.skipif(not native_built(), reason="the native kernels were not built")

HEADS, GROUPS = 6, 2


def pack(lengths: list[int], size: int = 16, dtype: torch.dtype = torch.float32):
    """Query `[1, T, H, K]`, keys and values `[T, G, K]` of a pack."""
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(1, sum(lengths), HEADS, size)] + [(sum(lengths), GROUPS, size)] * 2
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def run(attention, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Values and the three gradients."""
    copies = [one.clone().requires_grad_() for one in given]
    context = attention(0, *copies)
    upstream = torch.linspace(-1, 1, context.numel(), dtype=context.dtype).view(context.shape)
    (context * upstream).sum().backward()
    return [context.detach(), *(one.grad for one in copies)]


@pytest.mark.parametrize("size", [16, 48, 128])
@pytest.mark.parametrize(
    "lengths", [[1], [3, 1, 5], [16, 17, 15, 4], [64, 33], [200, 7, 129], [1024]]
)
def test_values_and_gradients_are_those_of_the_formula(lengths, size):
    given = pack(lengths, size)
    found = run(TrainingAttention(lengths), given)
    expected = run(DocumentAttention(lengths), [one.double() for one in given])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 5e-6 * max(1.0, other.abs().max())


def test_a_document_has_the_bits_that_it_has_alone_with_any_number_of_threads():
    lengths = [9, 40, 1, 64, 12]
    given = pack(lengths)
    threads = torch.get_num_threads()
    whole = run(TrainingAttention(lengths), given)
    try:
        torch.set_num_threads(3)
        rows.follow_threads()
        again = run(TrainingAttention(lengths), given)
    finally:
        torch.set_num_threads(threads)
        rows.follow_threads()
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)
    starts = itertools.accumulate([0, *lengths])
    for start, end in itertools.pairwise(starts):
        alone = TrainingAttention([end - start])(
            0, given[0][:, start:end], given[1][start:end], given[2][start:end]
        )
        assert torch.equal(alone, whole[0][start:end])


def test_no_document_sees_another():
    lengths = [9, 40, 13]
    given = pack(lengths)
    clean = run(TrainingAttention(lengths), given)
    given[0][:, 9:49] = given[1][9:49] = given[2][9:49] = torch.nan
    spoiled = run(TrainingAttention(lengths), given)
    for one, other in zip(clean, spoiled, strict=True):
        one, other = (each[0] if each.dim() == 4 else each for each in (one, other))
        assert torch.equal(one[:9], other[:9]) and torch.equal(one[49:], other[49:])
        assert other[9:49].isnan().all()


def test_weights_that_are_nearly_all_on_one_key():
    given = pack([50])
    given[0] *= 200
    found = run(TrainingAttention([50]), given)
    expected = run(DocumentAttention([50]), [one.double() for one in given])
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_bfloat16_is_nearer_to_the_truth_than_torchs():
    lengths = [64, 9, 130]
    given = pack(lengths, 32, torch.bfloat16)
    expected = run(DocumentAttention(lengths), [one.double() for one in given])
    errors = []
    for attention in (TrainingAttention, DocumentAttention):
        found = run(attention(lengths), given)
        assert all(one.dtype == torch.bfloat16 for one in found)
        errors.append([(one - two).norm() for one, two in zip(found, expected, strict=True)])
    assert all(ours <= 1.05 * theirs for ours, theirs in zip(*errors, strict=True))


@pytest.mark.parametrize(
    ("lengths", "size", "dtype"),
    [([5, _LONGEST + 1], 16, torch.float32), ([5], 24, torch.float32), ([5], 16, torch.float64)],
)
def test_what_the_kernels_do_not_take_is_torchs(lengths, size, dtype):
    given = pack(lengths, size, dtype)
    pairs = zip(
        run(TrainingAttention(lengths), given), run(DocumentAttention(lengths), given), strict=True
    )
    for one, other in pairs:
        assert torch.equal(one, other)
