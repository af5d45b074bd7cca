"""How fast training is and what memory it needs, beside nanoGPT's loop and TRL, in one run.

Same network, texts of the same numbers and lengths, AdamW and precision. Each loop is a process of
its own; they take turns, so that a machine that slows down slows down all of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from fourbee.benchmarks.training_side import SHAPES
from fourbee.benchmarks.work import Rate, System, running
from fourbee.foundation.errors import UsageError

Precision = Literal["float32", "bfloat16"]
Answers = Mapping[str, Sequence[Mapping[str, Any]]]


def measure_training(
    shape: str, precision: Precision, threads: int, rounds: int, trl_python: str | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Tokens learned a second, how many times ours are of each other's, and peak memory, by loop.

    `trl_python`: the Python that has `trl`; without one, TRL is left out.
    """
    if shape not in SHAPES:
        raise UsageError(f"shape = {shape!r}: expected one of {', '.join(SHAPES)}", "shape")
    words = [sys.executable, "-m", "fourbee.benchmarks.training_side"]
    options = ["--shape", shape, "--precision", precision, "--threads", str(threads)]
    commands = {"fourbee": [*words, "ours", *options], "plain": [*words, "plain", *options]}
    if trl_python:
        commands["trl"] = _trl(trl_python, shape, precision, threads)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with running(commands) as loops:
        for number in range(rounds + 1):  # one to warm up
            for loop in loops:
                answer = _round(loop, SHAPES[shape].updates)
                if number:
                    answers[loop.name].append(answer)
                    rate = answer["targets"] / answer["seconds"]
                    tell(f"round {number}: {loop.name} {rate:,.0f} tokens/s")
    return summary(answers)


def summary(answers: Answers) -> dict[str, Any]:
    """Medians with lowest and highest; ratios are made round by round."""

    def rates(name: str, clock: str) -> list[float]:
        return [one["targets"] / one[clock] for one in answers[name]]

    def ratios(name: str, clock: str) -> dict[str, float]:
        pairs = zip(rates("fourbee", clock), rates(name, clock), strict=True)
        return _spread([ours / other for ours, other in pairs])

    others = [name for name in answers if name != "fourbee"]
    peaks = {name: given[-1]["peak_bytes"] for name, given in answers.items()}
    return {
        "tokens_per_second": {name: _spread(rates(name, "seconds")) for name in answers},
        "times": {name: ratios(name, "seconds") for name in others},
        # Of one thread the steadier measure where other programs share the machine.
        "times_by_processor_time": {name: ratios(name, "processor_seconds") for name in others},
        "peak_bytes": peaks,
        "peak_share": {name: peaks["fourbee"] / peaks[name] for name in others},
    }


def _round(loop: System, updates: int) -> dict[str, Any]:
    return loop.ask(str(updates), f"{updates} updates")


def _spread(values: Sequence[float]) -> dict[str, float]:
    return asdict(Rate(statistics.median(values), min(values), max(values)))


def _trl(python: str, shape: str, precision: str, threads: int) -> list[str]:
    try:
        subprocess.run([python, "-c", "import trl"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(
            f"trl-python = {python!r}: has no trl: pip install trl there", "trl-python"
        ) from None
    chosen = SHAPES[shape]
    numbers = asdict(chosen.network) | {"batch": chosen.batch, "block": chosen.block}
    script = str(Path(__file__).parent / "peer_trl.py")
    return [python, script, json.dumps(numbers), precision, str(threads)]
