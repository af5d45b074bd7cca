"""Mixtures and curricula: shares that hold at every moment, and settings that change in time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.training.curriculum import Curriculum, CurriculumPoint, Schedule
from fourbee.training.mixture import Mixture
from fourbee.training.run_plan import DataSettings, RunPlan, plan_run
from fourbee.training.sources import Source

from .corpora import corpus_of


def lengths(tokens: int, seed: int) -> list[int]:
    """Documents of 20 to 200 tokens, about so many tokens in all."""
    return np.random.default_rng(seed).integers(20, 200, tokens // 110).tolist()


def planned(corpora, **of_settings) -> RunPlan:
    sources = tuple(corpus.source for corpus in corpora)
    of_settings = {"tokens_per_update": 2000, "tokens_per_pack": 2000} | of_settings
    return plan_run(corpora, DataSettings(data=sources, **of_settings), seed=0)


def shares_after(plan: RunPlan, count: int) -> np.ndarray:
    """[updates, sources]: the share of each source in the tokens of the first updates."""
    given = np.zeros((len(plan), count))
    for update in range(len(plan)):
        for piece in plan.samples(update):
            given[update, piece.corpus] += piece.tokens
    total = given.cumsum(axis=0)
    return total / total.sum(axis=1, keepdims=True)


THREE = [corpus_of(lengths(tokens, n), name="abc"[n]) for n, tokens in
         enumerate((200_000, 60_000, 3_000))]  # fmt: skip


@pytest.mark.parametrize(
    ("mixture", "weights", "expected"),
    [
        (Mixture(), (1, 1, 1), None),
        (Mixture(), (1, 2, 10), None),
        (Mixture(exponent=0.3), (1, 1, 1), None),
        (Mixture(exponent=0.0), (1, 1, 2), (0.25, 0.25, 0.5)),
        (Mixture(shares={"a": 5, "b": 3, "c": 2}), (1, 1, 1), (0.5, 0.3, 0.2)),
        (Mixture(shares={"a": 1, "b": 0, "c": 1}), (1, 1, 1), (0.5, 0.0, 0.5)),
    ],
)
def test_shares_hold_within_a_hundredth_at_every_moment(mixture, weights, expected):
    corpora = [
        corpus_of(one.lengths.tolist(), name=one.source.name, weight=weight)
        for one, weight in zip(THREE, weights, strict=True)
    ]
    sizes = np.array([len(one.ids) for one in corpora], float)
    if expected is None:
        expected = sizes**mixture.exponent * weights
        expected /= expected.sum()
    found = shares_after(planned(corpora, mixture=mixture, tokens=400_000), 3)
    # The first updates hold so few samples that one is more than a hundredth of them.
    assert np.abs(found[10:] - expected).max() < 0.01
    assert np.abs(found - expected).max() < 0.1


def test_what_is_small_repeats_and_each_round_is_shuffled_anew():
    plan = planned(THREE, mixture=Mixture(shares={"a": 1, "b": 0, "c": 1}), tokens=60_000)
    small = plan.pieces[plan.pieces[:, 0] == 2, 1]
    count = len(THREE[2])
    # Packing looks ahead, so that rounds overlap a little.
    assert 8 <= len(small) / count <= 12
    times = np.bincount(small, minlength=count)
    assert times.max() - times.min() <= 2
    assert len({tuple(small[start : start + 5]) for start in range(0, len(small), count)}) > 5


def test_groups_by_language_divide_their_share_by_tokens_and_weight():
    corpora = [
        corpus_of([100] * 90, name="a", language="en"),
        corpus_of([100] * 10, name="b", language="en", weight=3.0),
        corpus_of([100] * 25, name="c", language="zh"),
    ]
    mixture = Mixture(by="language", shares={"en": 0.6, "zh": 0.4})
    sources = [corpus.source for corpus in corpora]
    assert mixture.of_sources(sources, [9000, 1000, 2500]) == pytest.approx([0.45, 0.15, 0.4])
    # A group is tokens ** exponent times the mean weight of its tokens.
    natural = np.array([10_000**0.5 * 1.2, 2_500**0.5])
    found = Mixture(by="language", exponent=0.5).of_sources(sources, [9000, 1000, 2500])
    assert [found[0] + found[1], found[2]] == pytest.approx(natural / natural.sum())
    plan = planned(corpora, mixture=mixture, tokens=100_000)
    assert shares_after(plan, 3)[-1] == pytest.approx([0.45, 0.15, 0.4], abs=0.01)


def test_sources_of_one_name_are_told_apart_by_their_paths():
    sources = [Source(Path("x/a.jsonl")), Source(Path("y/a.jsonl")), Source(Path("b.txt.gz"))]
    assert Mixture().groups(sources) == ["x/a.jsonl", "y/a.jsonl", "b"]


def mixed(mixture: Mixture) -> None:
    mixture.of_sources([Source(Path("wiki.jsonl")), Source(Path("books.txt"))], [10, 10])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed(Mixture(shares={"wikki": 1})),
         "shares: no source 'wikki' (did you mean 'wiki'?); known: wiki, books"),
        (lambda: mixed(Mixture(shares={"wiki": 1})),
         "shares: none for source 'books'; 0 leaves it out"),
        (lambda: mixed(Mixture(shares={"wiki": 0, "books": 0})), "shares: all are 0"),
        (lambda: Mixture(shares={"wiki": -1}), "mixture.shares.wiki = -1: expected at least 0"),
        (lambda: mixed(Mixture(by="language")),
         "mixture.by = 'language', but wiki.jsonl has no language"),
        (lambda: Source(Path("a"), weight=0), "a: weight = 0: expected more than 0"),
        (lambda: CurriculumPoint(1.5),
         "curriculum.at = 1.5: expected a share of the run, 0 to 1"),
        (lambda: CurriculumPoint(0.5, difficulty=0.0),
         "curriculum.difficulty = 0.0: expected more than 0, at most 1"),
        (lambda: CurriculumPoint(0.5, length=1), "curriculum.length = 1: expected at least 2"),
        (lambda: CurriculumPoint(0.5, tokens_per_update=1),
         "curriculum.tokens_per_update = 1: expected at least 2"),
        (lambda: CurriculumPoint(0.5, shares={"a": float("nan")}),
         "curriculum.shares.a = nan: expected at least 0"),
        (lambda: Curriculum([CurriculumPoint(0.5), CurriculumPoint(0.1)]),
         "curriculum: points at [0.5, 0.1]: expected in order of `at`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message


# ---- curricula


def test_a_schedule_is_linear_between_points_and_constant_outside():
    ramp = Schedule([(0.2, 10), (0.6, 30), (0.6, 100), (1.0, 100)])
    places = (0.0, 0.2, 0.3, 0.5, 0.5999999, 0.6, 0.8, 1.0)
    found = [ramp.at(place, 0.0) for place in places]
    assert found == pytest.approx([10, 10, 15, 25, 30, 100, 100, 100], abs=1e-4)
    assert Schedule([(0.5, 3)]).at(0.9, 0.0) == 3
    assert Schedule([]).at(0.9, 7.0) == 7.0


def test_keys_that_a_point_lacks_are_as_at_the_points_around_it():
    curriculum = Curriculum(
        [
            CurriculumPoint(0.0, length=100),
            CurriculumPoint(0.5, difficulty=0.4),
            CurriculumPoint(1.0, length=200, shares={"a": 1}),
        ]
    )
    assert curriculum.length.at(0.5, 0) == 150
    assert curriculum.difficulty.at(0.0, 1.0) == 0.4
    assert curriculum.shares["a"].at(0.0, 0.0) == 1


def progress(plan: RunPlan) -> np.ndarray:
    """Of each update, which share of the run's tokens came before it."""
    tokens = np.array([plan.tokens(update) for update in range(len(plan))])
    return (tokens.cumsum() - tokens) / tokens.sum()


def test_shares_move_from_one_source_to_the_other():
    points = (CurriculumPoint(0.0, shares={"a": 1}), CurriculumPoint(1.0, shares={"b": 1}))
    plan = planned(THREE[:2], curriculum=points, tokens=400_000)
    whole = shares_after(plan, 2)
    assert whole[0, 0] > 0.95
    assert whole[-1, 0] == pytest.approx(0.5, abs=0.02)
    last = [piece.corpus for update in range(len(plan) - 5, len(plan))
            for piece in plan.samples(update)]  # fmt: skip
    assert np.mean(last) > 0.9


def test_only_the_easiest_are_drawn_until_more_are_allowed():
    corpus = corpus_of(list(range(20, 220)))
    points = (CurriculumPoint(0.0, difficulty=0.1), CurriculumPoint(0.5, difficulty=0.1),
              CurriculumPoint(0.5, difficulty=1.0))  # fmt: skip
    plan = planned([corpus], curriculum=points, tokens=60_000, tokens_per_update=500)
    early = [max(piece.sample for piece in plan.samples(update))
             for update, place in enumerate(progress(plan)) if place < 0.45]  # fmt: skip
    assert max(early) < 20
    # What was set aside comes before any of it comes again.
    counts = np.bincount(plan.pieces[:, 1])
    assert len(counts) == 200
    assert set(counts[20:]) <= {1, 2}
    assert set(counts[:20]) <= set(range(25, 60))


def test_texts_are_cut_shorter_and_conversations_wait_while_length_is_small():
    texts, talks = corpus_of([700] * 60, cuttable=True), corpus_of([30, 300] * 60, name="b")
    points = (CurriculumPoint(0.0, length=50), CurriculumPoint(1.0, length=500))
    plan = planned([texts, talks], curriculum=points, mixture=Mixture(), epochs=2)
    places = progress(plan)
    for update, place in enumerate(places):
        longest = max(piece.tokens for piece in plan.samples(update))
        # Pieces are drawn a little before they are packed.
        assert longest <= 50 + 450 * (place + 0.12)
    last = max(piece.tokens for update in range(len(plan) - 5, len(plan))
               for piece in plan.samples(update))  # fmt: skip
    assert last > 430
    alone = corpus_of([300] * 5)
    with pytest.raises(TrainingError) as caught:
        planned([alone], curriculum=(CurriculumPoint(0.0, length=50),))
    assert str(caught.value) == "curriculum: no sample has at most length = 50 tokens"


def test_updates_grow_and_as_many_as_asked_for_are_made():
    points = (CurriculumPoint(0.0, tokens_per_update=500),
              CurriculumPoint(1.0, tokens_per_update=4000))  # fmt: skip
    plan = planned(THREE[:1], curriculum=points, updates=60, tokens_per_pack=4000)
    sizes = [plan.tokens(update) for update in range(len(plan))]
    assert len(plan) == 60
    assert sizes[0] == pytest.approx(500, rel=0.01)
    assert sizes[-1] == pytest.approx(4000, rel=0.08)
    assert all(before < after * 1.01 for before, after in pairwise(sizes))
