"""The head in C++ chooses what NumPy's does, from logits made to measure."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.kernels import numpy_sampling
from fourbee.kernels.operations import HeadRequest, HeadResult, Linear

native = pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
native_ops = pytest.importorskip("fourbee.kernels.native_ops")

OPS = native_ops.open_native("float32", threads=2)


def head_of(logits_RV: np.ndarray) -> tuple[np.ndarray, Linear]:
    """Hidden states and a head whose product is exactly these logits: row r picks column r."""
    assert len(logits_RV) == 1 or np.isfinite(logits_RV).all()  # 0 times infinity is no number
    head = OPS.from_numpy(np.ascontiguousarray(logits_RV.T, dtype=np.float32))
    return np.eye(len(logits_RV), dtype=np.float32), Linear(head)


def native_result(logits_RV: np.ndarray, request: HeadRequest) -> HeadResult:
    hidden, head = head_of(logits_RV)
    return OPS.head(hidden, head, request)


def request(rows: int, **values) -> HeadRequest:
    """The same of every row, in the place of plain sampling under seed 0."""
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
    types = {"temperature": np.float32, "top_k": np.int64, "top_p": np.float32,
             "min_p": np.float32, "seed": np.uint64}  # fmt: skip
    rest = {key: values.pop(key) for key in ("num_top", "bias", "bitmask") if key in values}
    arrays = {key: np.full(rows, value, types[key]) for key, value in (plain | values).items()}
    return HeadRequest(position=np.arange(rows) + 5, **arrays, **rest)


def check_alike(logits_RV: np.ndarray, asked: HeadRequest) -> None:
    found, expected = (
        native_result(logits_RV, asked),
        numpy_sampling.select_tokens(logits_RV, asked),
    )
    assert found.finite.tolist() == expected.finite.tolist()
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    for name in ("logprobs", "logsumexp", "top_logprobs"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), atol=2e-5, rtol=2e-6
        )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocabulary=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 1000, 1535, 1536, 1537, 4096, 5000]),
    spread=st.sampled_from([0.01, 1.0, 8.0, 40.0]),
    temperature=st.sampled_from([0.0, 1e-3, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 20, 64, 70, 1000, 4000, 10**9]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    num_top=st.sampled_from([0, 1, 5, 20]),
    tied=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_it_chooses_what_numpy_does(
    rows, vocabulary, spread, temperature, top_k, top_p, min_p, num_top, tied, seed
) -> None:
    rng = np.random.default_rng(seed % 2**32)
    logits = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    if tied:
        logits = np.round(logits)
    # Where many are equally likely, which of them fill up a nucleus is a matter of rounding.
    asked = request(rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                    num_top=num_top, seed=seed)  # fmt: skip
    check_alike(logits, asked)


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.sampled_from([1, 31, 32, 33, 1000, 1537, 3100]),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 7]),
    top_p=st.sampled_from([1.0, 0.8]),
    allowed=st.sampled_from([0.01, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bias_and_bitmask_come_first_and_log_probabilities_know_nothing_of_them(
    vocabulary, temperature, top_k, top_p, allowed, seed
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((3, vocabulary)) * 3).astype(np.float32)
    bits = rng.random((3, 32 * -(-vocabulary // 32))) < allowed
    bits[:, rng.integers(vocabulary)] = True
    bitmask = np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)
    ids = rng.permutation(vocabulary)[: rng.integers(0, 6)]
    biases = (
        (2, ids, np.full(len(ids), 9, np.float32)),
        (0, ids[:1], np.float32([-50])[: len(ids)]),
    )
    for mask in (None, bitmask):
        asked = request(3, temperature=temperature, top_k=top_k, top_p=top_p, num_top=4, seed=seed,
                        bias=biases, bitmask=mask)  # fmt: skip
        check_alike(logits, asked)
        if mask is not None:
            chosen = native_result(logits, asked).token_ids
            assert bits[np.arange(3), chosen].all()


def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_threads() -> None:
    rng = np.random.default_rng(1)
    head = Linear(OPS.from_numpy(rng.standard_normal((5000, 64)).astype(np.float32)))
    hidden = rng.standard_normal((16, 64)).astype(np.float32)
    asked = request(16, temperature=0.9, top_p=0.95, num_top=3, seed=3)
    together = OPS.head(hidden, head, asked)
    try:
        for threads in (1, 3):
            native.set_threads(threads)
            for row in (0, 7, 15):
                rows = slice(row, row + 1)
                one = {
                    field.name: value[rows] if isinstance(value, np.ndarray) else value
                    for field in fields(asked)
                    for value in [getattr(asked, field.name)]
                }
                alone = OPS.head(hidden[rows], head, HeadRequest(**one))
                for field in fields(HeadResult):
                    found, expected = getattr(alone, field.name), getattr(together, field.name)
                    assert found.tobytes() == expected[rows].tobytes(), field.name
    finally:
        native.set_threads(2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("vocabulary", [5, 3000])
def test_a_row_that_holds_no_numbers_is_marked(damage, vocabulary, temperature) -> None:
    logits = np.zeros((1, vocabulary), dtype=np.float32)
    logits[0, 4] = damage
    result = native_result(logits, request(1, temperature=temperature, num_top=5, top_k=3))
    assert not result.finite[0] and 0 <= result.token_ids[0] < vocabulary
    assert np.isnan(result.logprobs[0])


def test_minus_infinity_is_a_logit_that_never_wins() -> None:
    logits = np.full((1, 4000), -np.inf, dtype=np.float32)
    logits[0, [17, 3900]] = [0.0, 1.0]
    for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 0.99), (10**6, 0.5)):
        asked = request(1, top_k=top_k, top_p=top_p, num_top=3)
        result = native_result(logits, asked)
        assert result.finite[0] and result.token_ids[0] in (17, 3900)
        assert result.top_ids[0, :2].tolist() == [3900, 17]
        np.testing.assert_allclose(result.logsumexp[0], np.log(1 + np.e), rtol=1e-6)
        # Each id once: then the lowest of those without probability, as in NumPy.
        assert native_result(logits, replace(asked, num_top=20)).top_ids.tolist() == (
            [[3900, 17, *range(17), 18]]
        )
        check_alike(logits, replace(asked, num_top=4000))
    forbidden = request(1, bitmask=np.zeros((1, 125), dtype=np.uint32))
    assert native_result(logits, forbidden).token_ids.tolist() == [0]  # as NumPy's argmax
    nothing = native_result(np.full((1, 9), -np.inf, dtype=np.float32), request(1))
    assert not nothing.finite[0]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampling_follows_softmax(temperature) -> None:
    logits = np.float32([[2.0, 1.0, 0.0, -1.0, 0.5]])
    asked = request(4000, temperature=temperature)
    counts = np.bincount(native_result(np.repeat(logits, 4000, 0), asked).token_ids, minlength=5)
    weights = np.exp(logits[0] / temperature)
    expected = weights / weights.sum() * 4000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 99.9% of chi-square, 4 degrees


def test_given_targets_are_scored() -> None:
    logits = np.random.default_rng(2).standard_normal((6, 2000)).astype(np.float32)
    hidden, head = head_of(logits)
    targets = np.array([0, 5, 1999, 1536, 7, 7])
    found = OPS.token_logprobs(hidden, head, targets, 3)
    expected = numpy_sampling.score_targets(logits, targets, 3)
    assert found.token_ids.tolist() == targets.tolist()
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-5)


def test_no_rows_are_no_work() -> None:
    hidden, head = head_of(np.zeros((1, 20), dtype=np.float32))
    assert len(OPS.head(hidden[:0], head, request(0, num_top=2)).token_ids) == 0


def test_what_does_not_fit_is_refused() -> None:
    hidden, head = head_of(np.zeros((2, 20), dtype=np.float32))
    good = request(2)
    bad = {
        "rows of the request = 1: expected 2": replace(good, top_p=good.top_p[:1]),
        "token 20: the vocabulary has 20": replace(
            good, bias=((0, np.array([20]), np.float32([1])),)
        ),
        "expected ascending rows": replace(good, bias=((2, np.array([1]), np.float32([1])),)),
        "words of the bitmask = 2: expected 1": replace(good, bitmask=np.zeros((2, 2), np.uint32)),
        "rows of the bitmask = 1: expected 2": replace(good, bitmask=np.zeros((1, 1), np.uint32)),
    }
    for message, asked in bad.items():
        with pytest.raises(ValueError, match=message):
            OPS.head(hidden, head, asked)
    with pytest.raises(ValueError, match="the matrix has 20"):
        OPS.token_logprobs(hidden, head, np.array([0, 20]), 0)
