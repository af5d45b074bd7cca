"""The share of a decoding step that is spent outside the kernels, through the whole of `LLM`.

Outside is whatever happens between the native entries: scheduling, arrays, what NumPy does of the
head, text. The native side keeps the time inside its entries (`TimedMutex` in csrc/machine.h). What
a plan does between its operations counts as inside: at most 50 ns an operation, a thousandth of a
step of the 0.6B (a plan of 250 norms of 128 numbers takes 12 us).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fourbee.benchmarks.checkpoint import write_tokenizer
from fourbee.benchmarks.shapes import random_model
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.kernels import _native
from fourbee.text.tokenizer import Tokenizer

STEPS = 48


@dataclass(frozen=True)
class Outside:
    """Of some rounds: the median step, and the median, lowest and highest share outside."""

    batch: int
    step_seconds: float
    median: float
    low: float
    high: float


def random_llm(shape: str, threads: int | None) -> LLM:
    """The shape in int4 with a tokenizer, as `serve` would have it."""
    weights, ops = random_model(shape, "int4", threads)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = Tokenizer.load(folder)
    return LLM(weights, ops, tokenizer)


def measure_outside(llm: LLM, batch: int, rounds: int) -> Outside:
    """Answers to `batch` prompts of one token, sampled as Qwen3 recommends; one round warms up."""
    params = SamplingParams(
        temperature=0.7, top_k=20, top_p=0.8, max_tokens=STEPS, ignore_eos=True, seed=1
    )
    shares, steps = [], []
    for number in range(rounds + 1):
        busy, started = _native.busy_seconds(), time.perf_counter()
        # The prompt's only token and each of the answer but the last: a row a step and prompt.
        llm.generate([[17 + row] for row in range(batch)], params)
        seconds, inside = time.perf_counter() - started, _native.busy_seconds() - busy
        if number:
            shares.append(1 - inside / seconds)
            steps.append(seconds / STEPS)
    median = statistics.median(shares)
    return Outside(batch, statistics.median(steps), median, min(shares), max(shares))
