"""The bench of training: its sides answer, its ratios are those of rounds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fourbee.benchmarks.training import measure_training, summary
from fourbee.benchmarks.training_side import SHAPES, OurLoop, random_ids
from fourbee.foundation.errors import UsageError


def answer(targets: float, seconds: float, peak: int) -> dict[str, float]:
    return {
        "targets": targets, "seconds": seconds, "processor_seconds": 2 * seconds, "peak_bytes": peak
    }  # fmt: skip


def test_ratios_are_of_the_same_round_and_of_the_last_peak():
    found = summary(
        {
            "fourbee": [answer(100, 1, 5), answer(100, 2, 10), answer(100, 4, 30)],
            "plain": [answer(100, 2, 5), answer(100, 3, 40), answer(50, 1, 60)],
        }
    )
    assert found["times"]["plain"] == {"median": 1.5, "low": 0.5, "high": 2.0}
    assert found["times_by_processor_time"]["plain"]["median"] == 1.5
    assert found["tokens_per_second"]["fourbee"] == {"median": 50, "low": 25, "high": 100}
    assert found["peak_share"] == {"plain": 0.5}


@pytest.mark.parametrize("side", ["ours", "plain"])
def test_a_side_learns_and_tells_what_it_took(side):
    words = [sys.executable, "-m", "fourbee.benchmarks.training_side", side]
    options = ["--shape", "shakespeare", "--precision", "float32", "--threads", "1"]
    done = subprocess.run(
        [*words, *options], input="1\n4\n", capture_output=True, text=True, check=True
    )
    _, first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["targets"] == 4 * first["targets"]
    assert second["loss"] < first["loss"]
    assert second["peak_bytes"] > 100e6 and second["seconds"] > 0


def test_ours_learns_whole_texts_of_one_length():
    shape = SHAPES["shakespeare"]
    loop = OurLoop(shape, random_ids(shape), "float32")
    before = loop.parameters["model.norm.weight"].clone()
    assert 4.0 < loop.step(1e-3) < 4.4  # log 65 is 4.17
    assert not before.equal(loop.parameters["model.norm.weight"])
    assert loop.targets == 12 * 63


def test_what_cannot_be_compared_is_one_line():
    with pytest.raises(UsageError, match="shape = 'huge': expected one of shakespeare, mini"):
        measure_training("huge", "float32", 1, 1, None, print)
    with pytest.raises(UsageError, match="has no trl"):
        measure_training("mini", "float32", 1, 1, "python-of-nobody", print)
