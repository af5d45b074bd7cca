"""What it costs to go on: the next turn of a conversation, and a text read before a restart.

Seconds from the request to the first token. The prompt is random tokens, read once without anything
to go on from; then the conversation goes on; then another engine, which has only the folder of the
context store, is asked the same, with the system's page cache as it is and once emptied of the
store's files. Loading the model is not in it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourbee.benchmarks.checkpoint import write_tokenizer
from fourbee.benchmarks.shapes import random_model
from fourbee.engine.context_store import ContextStore
from fourbee.engine.engine import Engine
from fourbee.engine.llm import LLM
from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.text.tokenizer import Tokenizer

# Tokens that a turn adds, and those of an answer.
ADDED, ANSWER = 32, 16
_PARAMS = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Turn:
    """A request's seconds to its first token, and how many tokens of its prompt were there."""

    seconds: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Lasting:
    """Turns over one text, and what writing it took."""

    first: Turn
    second: Turn
    restarted: Turn
    restarted_cold: Turn  # with no file of the store in the system's page cache
    written_bytes: int
    write_seconds: float


def measure_lasting(shape: str, tokens: int, threads: int | None, tell: Tell) -> Lasting:
    """Over a text of so many tokens, in int4 with int8 keys and values."""
    weights, ops = random_model(shape, "int4", threads)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = Tokenizer.load(folder)
    text = np.random.default_rng(0).integers(0, 1000, tokens).tolist()
    more = np.random.default_rng(1).integers(0, 1000, ADDED).tolist()
    with tempfile.TemporaryDirectory() as folder:

        def start() -> LLM:
            store = ContextStore(Path(folder))
            return LLM(weights, ops, tokenizer, store=store, weights_digest=f"random {shape}")

        llm = start()
        first, answer = _turn(llm.engine, text)
        tell(f"read: {first.seconds:.2f} s")
        second, _ = _turn(llm.engine, [*text, *answer, *more])
        tell(f"next turn: {second.seconds:.3f} s")
        began = time.perf_counter()
        llm.close()
        write_seconds = time.perf_counter() - began
        written = sum(file.stat().st_size for file in _files(folder))
        restarted = []
        for empty in (False, True):
            llm = start()
            if empty:
                _forget(folder)
            turn, again = _turn(llm.engine, text)
            assert again == answer, "another text after a restart"
            restarted.append(turn)
            tell(f"after a restart: {turn.seconds:.3f} s")
            llm.close()
    warm, cold = restarted
    return Lasting(first, second, warm, cold, written, write_seconds)


def _turn(engine: Engine, prompt: list[int]) -> tuple[Turn, list[int]]:
    answer: list[int] = []
    seconds = 0.0
    began = time.perf_counter()
    engine.add(Request("turn", tuple(prompt), _PARAMS))
    while True:
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                seconds = seconds or time.perf_counter() - began
                answer.append(event.token.token_id)
            elif isinstance(event, Finished):
                return Turn(seconds, len(prompt), event.cached_tokens), answer


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _forget(folder: str) -> None:
    """Takes the store's files out of the system's page cache."""
    os.sync()
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
