"""The plan of a run: a pure function, the same for any number of processes, as its budget says."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.training.curriculum import CurriculumPoint
from fourbee.training.run_plan import DataSettings, RunPlan, fitting, plan_run

from .corpora import corpus_of

LENGTHS = np.random.default_rng(5).integers(5, 90, 300).tolist()


def planned(*corpora, seed: int = 0, **of_settings) -> RunPlan:
    of_settings = {"tokens_per_update": 500, "tokens_per_pack": 200} | of_settings
    sources = tuple(corpus.source for corpus in corpora)
    return plan_run(corpora, DataSettings(data=sources, **of_settings), seed)


def same(one: RunPlan, other: RunPlan) -> bool:
    return np.array_equal(one.pieces, other.pieces) and np.array_equal(one.offsets, other.offsets)


def test_the_same_arguments_give_the_same_plan_and_another_seed_another():
    corpus = corpus_of(LENGTHS, cuttable=True)
    first = planned(corpus)
    assert same(first, planned(corpus))
    assert not same(first, planned(corpus, seed=1))
    # What is in memory at once says nothing of what an update is.
    assert same(first, planned(corpus, tokens_per_pack=4000))


def test_without_shuffling_samples_come_in_their_order_near_enough():
    lengths = [10] * 400
    plan = planned(corpus_of(lengths), shuffle=False, epochs=2)
    assert plan.pieces[:, 1].tolist() == [*range(400), *range(400)]
    plan = planned(corpus_of(LENGTHS), shuffle=False)
    # No further ahead than packing looks.
    assert np.abs(plan.pieces[:, 1] - np.arange(len(LENGTHS))).max() < 140


def test_epochs_are_shuffled_each_in_its_own_way():
    plan = planned(corpus_of([10] * 400), epochs=2)
    first, second = np.split(plan.pieces[:, 1], 2)
    assert sorted(first) == sorted(second) == list(range(400))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(400))


def test_a_text_is_cut_at_other_places_in_every_epoch():
    plan = planned(corpus_of([1000], cuttable=True), epochs=3, tokens_per_update=100)
    starts = [row[2] for row in plan.pieces.tolist()]
    epochs = np.split(np.array(starts), np.flatnonzero(np.array(starts) == 0)[1:])
    assert len(starts) > 30
    cuts = [frozenset(epoch.tolist()) for epoch in epochs]
    assert len(set(cuts)) == len(cuts)


@pytest.mark.parametrize(
    ("budget", "tokens", "updates"),
    [
        ({}, sum(LENGTHS), None),
        ({"epochs": 3}, 3 * sum(LENGTHS), None),
        ({"tokens": 2000}, 2000, None),
        ({"updates": 17}, 17 * 500, 17),
        ({"updates": 100}, 100 * 500, 100),
    ],
)
def test_a_budget_is_kept(budget, tokens, updates):
    plan = planned(corpus_of(LENGTHS), **budget)
    total = sum(plan.tokens(update) for update in range(len(plan)))
    if "epochs" in budget or not budget:
        assert total == tokens
    assert 0.985 * tokens <= total <= tokens + 90
    assert updates in (None, len(plan))


def test_several_sources_are_one_where_no_mixture_is_asked_for():
    corpora = [corpus_of([10] * 30, name="a"), corpus_of([10] * 90, name="b")]
    plan = planned(*corpora, shuffle=False)
    assert plan.pieces[:, 0].tolist() == [0] * 30 + [1] * 90
    plan = planned(*corpora, epochs=2)
    assert np.bincount(plan.pieces[:, 0]).tolist() == [60, 180]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 1, "tokens": 5}, "epochs and tokens: expected only one of epochs, updates, "
         "tokens"),
        ({"updates": 0}, "updates = 0: expected at least 1"),
        ({"tokens_per_update": 1}, "tokens_per_update = 1: expected at least 2"),
        ({"tokens_per_pack": 0}, "tokens_per_pack = 0: expected at least 2"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(given, message):
    with pytest.raises(UsageError) as caught:
        DataSettings(**given)
    assert str(caught.value) == message


def test_what_is_too_long_and_may_not_be_cut_is_named_or_left_out():
    told: list[str] = []
    corpus = corpus_of([10, 20, 300, 400])
    data = DataSettings(data=(corpus.source,), tokens_per_pack=200)
    with pytest.raises(TrainingError) as caught:
        fitting([corpus], data, 1000, told.append)
    assert str(caught.value) == (
        "a.jsonl:3: 300 tokens, more than tokens_per_pack = 200, and only plain texts may be cut "
        "(2 such samples; long_samples = 'skip' leaves them out)"
    )
    pairs = corpus_of([10, 20, 150, 60, 30, 40], parts=2)
    with pytest.raises(TrainingError, match=r"a\.jsonl:2: 210 tokens, more than tokens_per_pack"):
        fitting([pairs], data, 1000, told.append)
    data = replace(data, tokens_per_pack=210)
    assert fitting([pairs], data, 150, told.append) == (pairs,)
    with pytest.raises(TrainingError) as caught:
        fitting([pairs], data, 149, told.append)
    assert str(caught.value) == (
        "a.jsonl:2: 150 tokens, more than the model's positions = 149, and only plain texts may "
        "be cut"
    )
    assert not told
    skip = replace(data, long_samples="skip")
    (left,) = fitting([pairs], skip, 149, told.append)
    assert told == [
        "a.jsonl: 1 samples left out that are longer than tokens_per_pack = 210 or the model's "
        "positions = 149, as long_samples = 'skip' says"
    ]
    assert left.lengths.tolist() == [10, 20, 30, 40]
    assert [left.where(one) for one in range(len(left))] == ["a.jsonl:1", "a.jsonl:3"]
    assert left.ids.tolist() == [*pairs.ids[:30], *pairs.ids[240:]]
    assert len(plan_run([left], skip, 0).samples(0)) == 2
    with pytest.raises(TrainingError, match=r"a\.jsonl:1: 20 tokens, more than the model's"):
        fitting([pairs], skip, 5, told.append)  # nothing would be left
    data = replace(data, tokens_per_pack=400, curriculum=(CurriculumPoint(0.0, length=20),))
    with pytest.raises(TrainingError, match=r"a\.jsonl:3: 300 tokens, more than the longest curr"):
        fitting([corpus], data, 1000, told.append)
    (left,) = fitting([corpus], replace(data, long_samples="skip"), 1000, told.append)
    assert left.lengths.tolist() == [10, 20]
    texts = replace(corpus, cuttable=np.ones(4, np.bool_))
    plan = plan_run([texts], DataSettings(data=(texts.source,)), 0, positions=64)
    assert max(pack.positions.max() for pack in plan.packs(0)) < 64


@pytest.mark.slow
def test_a_hundred_thousand_documents_are_planned_in_three_seconds():
    corpus = corpus_of(np.random.default_rng(0).integers(20, 400, 100_000).tolist())
    started = time.process_time()
    plan = planned(corpus, tokens_per_update=4096, tokens_per_pack=4096)
    assert time.process_time() - started < 3
    assert len(plan) > 4000
