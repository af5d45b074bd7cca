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

from .conftest import SilentReporter
from .stages import STAGES, digests, run, table

UPDATES, KILLS = 24, 3


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
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and logged(log) < updates:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
    return process.returncode


def logged(log: Path) -> int:
    """The last update that a log tells of."""
    lines = log.read_bytes().splitlines() if log.is_file() else []
    return max((json.loads(one).get("update", 0) for one in lines[:-1]), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_kill_minus_nine_at_any_moment(name, data, start, tmp_path):
    whole = table(name, data, start, tmp_path / "whole", updates=UPDATES, checkpoint_every=3)
    run(name, whole, SilentReporter())
    killed = tmp_path / "killed"
    words = command(name, whole | {"output": str(killed)}, tmp_path / "recipe.toml")
    drawn = random.Random(name)
    moments = sorted(drawn.sample(range(1, UPDATES - 4), KILLS))
    ends = [kill_after(words, killed / "log.jsonl", one, drawn.uniform(0, 0.05)) for one in moments]
    assert ends == [-signal.SIGKILL] * KILLS  # each in the middle of the run
    subprocess.run(words, check=True, capture_output=True)
    assert digests(killed) == digests(tmp_path / "whole")
