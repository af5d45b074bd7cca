"""`kill -9` by the system: whenever it comes, the run resumes to the bits of one left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fourbee.training.checkpoint import checkpoints
from fourbee.training.run_log import LOG, read_log

from .conftest import SilentReporter
from .stages import STAGES, digests, run, table

UPDATES, CHECKPOINT_EVERY = 30, 6
# Updates after which a run is killed: before its first checkpoint; as that is written, or later; so
# far on that the log of the run before does not tell of them.
MOMENTS = (range(1, 2), range(5, 12), range(17, 24))


def toml(value: Any) -> str:
    """A value of a recipe file."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def command(name: str, settings: dict[str, Any], recipe: Path) -> list[str]:
    """The words that a user types."""
    lines = [f"{key} = [{', '.join(map(toml, one))}]" if isinstance(one, list)
             else f"{key} = {toml(one)}" for key, one in settings.items()]  # fmt: skip
    recipe.write_text("\n".join(lines) + "\n")
    stage = "preference" if name == "kto" else name
    return [sys.executable, "-m", "fourbee", "train", stage, str(recipe)]


def kill_after(words: list[str], log: Path, updates: int, delay: float) -> int:
    """The exit status of a run that is killed `delay` seconds after so many updates are logged."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and logged(log) < updates:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
    found = sorted(path.name for path in log.parent.glob("update-*"))
    print(f"ended with {process.returncode}, {logged(log)} updates logged, {found}")
    return process.returncode


def logged(log: Path) -> int:
    """The last update that a log tells of, apart from its last line, which may be half a line."""
    lines = log.read_bytes().splitlines() if log.is_file() else []
    return max((json.loads(one).get("update", 0) for one in lines[:-1]), default=0)


def losses(run_folder: Path) -> list[tuple[int, float]]:
    """The updates that a run's log tells of, and their losses."""
    records = read_log(run_folder / LOG)
    return [(record["update"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_kill_minus_nine_at_any_moment(name, data, start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = table(
        name, data, start, whole, updates=UPDATES, checkpoint_every=CHECKPOINT_EVERY
    )  # fmt: skip
    run(name, settings, SilentReporter())
    words = command(name, settings | {"output": str(killed)}, tmp_path / "recipe.toml")
    log, drawn = killed / LOG, random.Random(name)

    for moments in MOMENTS:
        moment, delay = drawn.choice(moments), drawn.uniform(0, 0.02)
        assert logged(log) < moment
        assert kill_after(words, log, moment, delay) == -signal.SIGKILL
        assert moment <= logged(log) < UPDATES
        if moments is MOMENTS[0]:
            assert not checkpoints(killed)  # all its work is lost
    # As the last checkpoint or the export is written, or when all is done.
    assert kill_after(words, log, UPDATES - 1, drawn.uniform(0, 0.1)) in (-signal.SIGKILL, 0)

    subprocess.run(words, check=True, capture_output=True)
    assert digests(killed) == digests(whole)
    assert losses(killed) == losses(whole)
    assert [update for update, _ in losses(killed)] == list(range(1, UPDATES + 1))
