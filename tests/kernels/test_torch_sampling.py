"""From logits to tokens: the distribution, its truncation, and that a row stands for itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fourbee.kernels import torch_sampling
from fourbee.kernels.operations import HeadRequest, Linear
from fourbee.kernels.torch_sampling import gumbel_noise, score_targets, select_tokens


def request(rows: int, **changes) -> HeadRequest:
    """Plain sampling of every row at temperature 1; row r samples position r under seed 0."""
    plain = HeadRequest(
        temperature=np.ones(rows, dtype=np.float32),
        top_k=np.zeros(rows, dtype=np.int64),
        top_p=np.ones(rows, dtype=np.float32),
        min_p=np.zeros(rows, dtype=np.float32),
        seed=np.zeros(rows, dtype=np.uint64),
        position=np.arange(rows),
    )
    arrays = {
        key: np.full(rows, value, getattr(plain, key).dtype) if np.isscalar(value) else value
        for key, value in changes.items()
        if key not in ("num_top", "bias", "bitmask")
    }
    return replace(plain, **(changes | arrays))


def mask_of(allowed, vocabulary: int) -> np.ndarray:
    """One row of bitmask with these tokens allowed."""
    words = np.zeros((1, -(-vocabulary // 32)), dtype=np.uint32)
    for token in allowed:
        words[0, token // 32] |= np.uint32(1 << (token % 32))
    return words


def kept(monkeypatch, logits_V: torch.Tensor, **changes) -> set[int]:
    """The tokens that truncation leaves: those that win when noise lifts them above all others."""
    vocabulary = len(logits_V)
    with monkeypatch.context() as patch:
        patch.setattr(
            torch_sampling,
            "gumbel_noise",
            lambda seed, position, token_ids: 1e9 * (token_ids == position).double(),
        )
        result = select_tokens(logits_V.expand(vocabulary, -1), request(vocabulary, **changes))
    return {token for token, chosen in enumerate(result.token_ids) if chosen == token}


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


# Noise.


def test_the_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(3, 5, torch.arange(200_000))
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.01  # Euler's constant
    assert abs(noise.var() - np.pi**2 / 6) < 0.02
    uniform = torch.exp(-torch.exp(-noise))
    counts = torch.histc(uniform, 20, 0, 1).numpy()
    assert chi_square(counts, np.full(20, 1 / 20)) < 43.8  # 19 degrees of freedom, p = 0.001


def test_the_noise_depends_on_seed_position_and_token_alone() -> None:
    tokens = torch.arange(1000)
    noise = gumbel_noise(2**64 - 1, 7, tokens)
    assert torch.equal(gumbel_noise(2**64 - 1, 7, tokens[500:]), noise[500:])
    for seed, position in ((2**64 - 2, 7), (2**64 - 1, 8), (7, 2**63 - 1)):
        assert not (gumbel_noise(seed, position, tokens) == noise).any()


def test_neighbouring_seeds_and_positions_are_not_correlated() -> None:
    tokens = torch.arange(20_000)
    streams = [gumbel_noise(s, p, tokens) for s, p in ((0, 0), (0, 1), (1, 0), (1, 1))]
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(4)
    assert correlations.abs().max() < 0.03


def test_the_largest_and_smallest_hashes_give_finite_noise(monkeypatch) -> None:
    monkeypatch.setattr(torch_sampling, "_mix", lambda x: torch.full_like(x, -1))
    assert gumbel_noise(0, 0, torch.arange(3)).isfinite().all()
    monkeypatch.setattr(torch_sampling, "_mix", torch.zeros_like)
    assert gumbel_noise(0, 0, torch.arange(3)).isfinite().all()


# Distribution.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_softmax(temperature) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -0.5])
    rows = 4000
    result = select_tokens(logits.expand(rows, -1), request(rows, temperature=temperature))
    probabilities = (logits / temperature).softmax(-1).numpy()
    counts = np.bincount(result.token_ids, minlength=6)
    assert chi_square(counts, probabilities) < 20.5  # 5 degrees of freedom, p = 0.001


def test_truncated_sampling_follows_the_softmax_of_what_is_kept() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -0.5])
    result = select_tokens(logits.expand(4000, -1), request(4000, top_k=3))
    counts = np.bincount(result.token_ids, minlength=6)
    assert counts[[2, 3, 5]].sum() == 0
    assert chi_square(counts[[0, 1, 4]], logits[[0, 1, 4]].softmax(-1).numpy()) < 13.8


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert select_tokens(logits, request(2, temperature=0)).token_ids.tolist() == [1, 0]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = torch.tensor([[90.0, 91.0, -50.0]])
    for temperature in (1e-3, 1e-30, 1e-38):
        assert select_tokens(logits, request(1, temperature=temperature)).token_ids.tolist() == [1]


# A row stands for itself.


def test_a_row_samples_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 50, generator=generator)
    settings = {
        "temperature": np.linspace(0, 2, 16, dtype=np.float32),
        "top_k": np.arange(16) % 5,
        "top_p": np.linspace(0.3, 1, 16, dtype=np.float32),
        "seed": np.arange(16, dtype=np.uint64) * np.uint64(2**59),
    }
    whole = request(16, **settings)
    together = select_tokens(logits, whole)
    order = torch.randperm(16, generator=generator).numpy()
    for rows in (order, order[:5], *order[:, None]):
        part = replace(
            whole,
            **{key: getattr(whole, key)[rows] for key in (*settings, "min_p", "position")},
        )
        result = select_tokens(logits[rows], part)
        assert result.token_ids.tolist() == together.token_ids[rows].tolist()
        assert np.allclose(result.logprobs, together.logprobs[rows], atol=1e-6)


def test_the_seed_and_the_position_change_what_is_sampled() -> None:
    logits = torch.zeros(64, 1000)
    positions = select_tokens(logits, request(64)).token_ids
    seeds = select_tokens(logits, request(64, seed=np.arange(64, dtype=np.uint64), position=0))
    assert len(set(positions)) > 55 and len(set(seeds.token_ids)) > 55
    again = select_tokens(logits, request(64))
    assert again.token_ids.tolist() == positions.tolist()


# Truncation, against transformers.


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (1, 1.0, 0.0),
        (7, 1.0, 0.0),
        (99, 1.0, 0.0),
        (0, 0.01, 0.0),
        (0, 0.5, 0.0),
        (0, 0.95, 0.0),
        (0, 1.0, 0.1),
        (0, 1.0, 1.0),
        (20, 0.8, 0.0),
        (20, 0.9, 0.05),
        (5, 0.99, 0.3),
    ],
)
def test_truncation_keeps_what_transformers_keeps(
    monkeypatch, temperature, top_k, top_p, min_p
) -> None:
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(int(temperature * 10))
    logits = 2 * torch.randn(64, generator=generator)
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())
    found = kept(
        monkeypatch, logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    assert found == expected


def test_bias_and_bitmask_come_before_top_k(monkeypatch) -> None:
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    rows = range(5)
    bias = tuple((row, np.array([0, 4]), np.array([-9, 9], dtype=np.float32)) for row in rows)
    assert kept(monkeypatch, logits, top_k=2, bias=bias) == {4, 1}
    bitmask = np.repeat(mask_of([2, 3], 5), 5, axis=0)
    assert kept(monkeypatch, logits, top_k=2, bitmask=bitmask) == {2, 3}
    assert kept(monkeypatch, logits, top_k=4, bias=bias, bitmask=bitmask) == {2, 3}


def test_a_bitmask_reaches_every_word_and_binds_greedy_rows_too() -> None:
    vocabulary = 70
    for token in (0, 31, 32, 63, 64, 69):
        result = select_tokens(
            torch.zeros(1, vocabulary),
            request(1, temperature=0, bitmask=mask_of([token], vocabulary)),
        )
        assert result.token_ids.tolist() == [token]


def test_bias_touches_its_row_only_and_adds_up() -> None:
    logits = torch.zeros(2, 4)
    bias = (
        (1, np.array([2]), np.array([1.0], dtype=np.float32)),
        (1, np.array([2, 3]), np.array([1.0, 1.5], dtype=np.float32)),
    )
    result = select_tokens(logits, request(2, temperature=0, bias=bias))
    assert result.token_ids.tolist() == [0, 2]
    assert not logits.any()


# What is reported.


def test_log_probabilities_are_those_of_the_plain_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 10, generator=generator)
    expected = logits.double().log_softmax(-1).numpy()
    bias = tuple((row, np.array([row]), np.array([99.0], dtype=np.float32)) for row in range(3))
    result = select_tokens(logits, request(3, temperature=0.3, top_k=2, num_top=4, bias=bias))
    assert result.token_ids.tolist() == [0, 1, 2]
    assert np.allclose(result.logprobs, expected[[0, 1, 2], [0, 1, 2]], atol=1e-5)
    assert np.allclose(result.logsumexp, logits.logsumexp(-1).numpy())
    assert result.top_ids.tolist() == np.argsort(-expected, axis=-1)[:, :4].tolist()
    assert np.allclose(result.top_logprobs, -np.sort(-expected, axis=-1)[:, :4], atol=1e-5)


def test_given_targets_are_scored(ops) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 8, generator=generator), Linear(torch.eye(8))
    targets = np.array([7, 0, 3, 3])
    result = ops.token_logprobs(hidden, head, targets, num_top=2)
    expected = hidden.double().log_softmax(-1).numpy()
    assert result.token_ids.tolist() == targets.tolist()
    assert np.allclose(result.logprobs, expected[np.arange(4), targets], atol=1e-5)
    assert result.top_ids.shape == result.top_logprobs.shape == (4, 2)
    assert score_targets(hidden, targets, 0).top_ids.shape == (4, 0)
    assert score_targets(hidden, targets, 99).top_ids.shape == (4, 8)


def test_rows_that_hold_no_numbers_are_marked() -> None:
    logits = torch.zeros(4, 5)
    logits[1, 2] = torch.nan
    logits[3, 0] = torch.inf
    result = select_tokens(logits, request(4, temperature=np.array([0, 0, 1, 1], np.float32)))
    assert result.finite.tolist() == [True, False, True, False]
