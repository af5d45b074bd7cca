"""Intervals: Wilson's against a published table, the bootstrap against what it must obey."""

from __future__ import annotations

import random

import pytest

from fourbee.evaluation.intervals import Share, clustered, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By the formula, to four places.
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0000),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilsons_interval_is_the_published_one(right, total, low, high):
    share = wilson(right, total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5.1e-5)
    assert (share.right, share.total, share.value) == (right, total, right / total)


def test_an_interval_holds_its_share_and_stays_between_none_and_all():
    for total in (1, 2, 7, 100):
        for right in range(total + 1):
            share = wilson(right, total)
            assert 0 <= share.low <= share.value <= share.high <= 1
            mirrored = wilson(total - right, total)
            assert share.low == pytest.approx(1 - mirrored.high)


def test_a_share_reads_as_per_cent_with_its_interval():
    assert str(Share(9, 10, 0.596, 0.982)) == "90.0% [59.6%, 98.2%] of 10"


def flips(rng: random.Random, shares: list[float], each: int) -> list[list[bool]]:
    return [[rng.random() < share for _ in range(each)] for share in shares]


def test_the_bootstrap_is_the_same_for_the_same_seed():
    clusters = flips(random.Random(0), [0.2, 0.5, 0.9, 0.7] * 10, 7)
    assert clustered(clusters) == clustered(clusters)
    assert clustered(clusters, seed=1) != clustered(clusters)


def test_the_bootstrap_counts_all_samples_of_clusters_of_any_size():
    share = clustered([[True], [False, False], [True, True, False]])
    assert (share.right, share.total) == (3, 6)
    assert share.low <= share.value <= share.high


def test_clusters_of_one_sample_have_about_wilsons_interval():
    rights = [index % 10 < 7 for index in range(300)]
    found, expected = clustered([[one] for one in rights]), wilson(sum(rights), len(rights))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_samples_of_one_template_are_not_taken_for_independent():
    clusters = [[index % 2 == 0] * 10 for index in range(20)]
    found, naive = clustered(clusters), wilson(100, 200)
    assert found.high - found.low > 2 * (naive.high - naive.low)
    assert (found.low, found.high) == pytest.approx((0.28, 0.72), abs=0.05)


def test_all_right_and_all_wrong_are_sure():
    assert (clustered([[True] * 3] * 4).low, clustered([[False]] * 4).high) == (1.0, 0.0)


def test_the_bootstrap_holds_the_true_share_about_as_often_as_it_says():
    rng, held, rounds = random.Random(0), 0, 200
    for seed in range(rounds):
        shares = [rng.choice((0.3, 0.9)) for _ in range(40)]
        found = clustered(flips(rng, shares, 5), rounds=200, seed=seed)
        held += found.low <= 0.6 <= found.high
    assert 0.88 < held / rounds < 0.99
