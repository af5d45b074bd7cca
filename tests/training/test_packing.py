"""Packing: every target exactly once, nothing dropped, and hardly any room left."""

from __future__ import annotations

from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.training.packing import Piece, best_subset, cut, make_packs, pack_documents
from fourbee.training.run_plan import DataSettings, RunPlan, plan_run

from .corpora import corpus_of


@given(st.integers(1, 500), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_the_pieces_of_a_text_have_each_target_once(tokens, longest, offset):
    spans = cut(tokens, longest, offset)
    targets = [target for first, stop in spans for target in range(first + 1, stop)]
    assert targets == list(range(1, tokens))
    assert all(stop - first <= longest for first, stop in spans)
    if tokens > longest:
        assert spans[0][1] == min(2 + offset % (longest - 1), tokens)
        assert all(stop - first == longest for first, stop in spans[1:-1])


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(0, 120), st.integers(0, 6))
def test_the_best_subset_is_that_of_trying_all(lengths, capacity, spare):
    chosen = best_subset(lengths, capacity, spare)
    every = chain.from_iterable(
        combinations(range(len(lengths)), size) for size in range(len(lengths) + 1)
    )
    sums = {sum(lengths[index] for index in one) for one in every}
    best = max(one for one in sums if one <= capacity)
    spared = max((one for one in sums if one <= capacity - spare), default=-1)
    wanted = spared if spared >= max(0, capacity - 2 * spare) else best
    assert sum(lengths[index] for index in chosen) == wanted
    assert len(set(chosen)) == len(chosen)


def test_of_equal_subsets_the_earliest_pieces_are_taken():
    assert best_subset([5, 5, 5, 5], 10) == [0, 1]
    assert best_subset([9, 4, 6, 9], 10) == [1, 2]


def seen(plan: RunPlan) -> Counter[int]:
    """How often each token of `corpus_of` is a target over the run; ids tell which it is."""
    return Counter(
        chain.from_iterable(
            pack.ids[pack.learned].tolist() for update in range(len(plan))
            for pack in plan.packs(update)
        )
    )  # fmt: skip


def expected(lengths: list[int], epochs: int) -> dict[int, int]:
    firsts = {0, *np.cumsum(lengths).tolist()}
    return {token: epochs for token in range(sum(lengths)) if token not in firsts}


lengths_of_documents = st.lists(st.integers(2, 120), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    lengths_of_documents, st.booleans(), st.integers(1, 3), st.integers(2, 300),
    st.integers(0, 200), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_over_a_run_every_target_comes_once_an_epoch(
    lengths, cuttable, epochs, update, more, shuffle, seed
):
    corpus = corpus_of(lengths, cuttable)
    pack = more + (2 if cuttable else max(lengths))
    data = DataSettings(
        data=(corpus.source,), epochs=epochs, tokens_per_update=update, tokens_per_pack=pack,
        shuffle=shuffle,
    )  # fmt: skip
    plan = plan_run([corpus], data, seed)
    assert seen(plan) == expected(lengths, epochs)
    for number in range(len(plan)):
        samples, packs = plan.samples(number), plan.packs(number)
        assert plan.tokens(number) <= update or len(samples) == 1
        assert sorted(chain.from_iterable(one.documents for one in packs)) == list(
            range(len(samples))
        )
        for one in packs:
            assert len(one.ids) == sum(one.lengths) <= pack
            parts = [samples[document] for document in one.documents]
            assert [part.tokens for part in parts] == list(one.lengths)
            positions = np.concatenate([np.arange(length) for length in one.lengths])
            assert np.array_equal(one.positions, positions)
        # Texts leave no more than a hundredth of an update free, except at the end of the run.
        if cuttable and number < len(plan) - 1:
            assert update - plan.tokens(number) <= max(1, update // 100)


@pytest.mark.parametrize("spread", [(20, 400), (500, 1000), (4, 4000)])
def test_updates_and_packs_of_conversations_are_nearly_full(spread):
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(*np.log(spread), 2000)).astype(int).tolist()
    corpus = corpus_of(lengths)
    for update, pack in ((4096, 4096), (16384, 8192)):
        data = DataSettings(
            data=(corpus.source,), tokens_per_update=update, tokens_per_pack=pack
        )  # fmt: skip
        plan = plan_run([corpus], data, seed=0)
        tokens = [plan.tokens(number) for number in range(len(plan) - 1)]
        assert np.mean(tokens) > 0.99 * update
        some = range(0, len(plan) - 1, 3)
        packs = [len(one.ids) for number in some for one in plan.packs(number)]
        assert np.mean(packs) > 0.96 * pack


def test_a_piece_may_alone_be_more_than_an_update():
    corpus = corpus_of([50, 10, 10])
    data = DataSettings(
        data=(corpus.source,), tokens_per_update=20, tokens_per_pack=50, shuffle=False
    )  # fmt: skip
    plan = plan_run([corpus], data, seed=0)
    assert [plan.tokens(number) for number in range(len(plan))] == [50, 20]


def test_both_documents_of_a_pair_are_in_one_pack_the_chosen_one_first():
    corpus = corpus_of([7, 5, 3, 9, 4, 4], parts=2)
    pieces = [Piece(0, sample, 0, corpus.tokens(sample)) for sample in range(3)]
    packs = make_packs([corpus], pieces, tokens_per_pack=20)
    assert sorted((pack.documents, pack.lengths) for pack in packs) == [
        ((0, 0, 2, 2), (7, 5, 4, 4)), ((1, 1), (3, 9)),
    ]  # fmt: skip
    for pack in packs:
        starts = np.cumsum([0, *pack.lengths[:-1]])
        assert not pack.learned[starts].any()
        assert pack.num_targets == len(pack.ids) - len(pack.lengths)


def test_documents_of_no_corpus_are_packed_by_length():
    documents = [([index] * length, [True] * length) for index, length in enumerate((9, 2, 8, 3))]
    packs = pack_documents(documents, 11)
    assert [pack.documents for pack in packs] == [(1, 3), (2,), (0,)]
    assert [pack.num_targets for pack in packs] == [3, 7, 8]
