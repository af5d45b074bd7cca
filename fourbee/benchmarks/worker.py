"""fourbee as one of the systems: `python -m fourbee.benchmarks.worker --shape 4B`.

Runs steps as the engine does: scheduling, the plan, sampling. A depth is made by copying one
page of real keys and values: reading 16,384 tokens first would take minutes and time nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np

from fourbee.benchmarks.shapes import random_model, weight_bytes
from fourbee.benchmarks.work import Work
from fourbee.engine.checkpoint import open_checkpoint
from fourbee.engine.model_runner import ModelRunner, new_storage
from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import Chunk
from fourbee.engine.sequence import Sequence
from fourbee.foundation.errors import CapacityError, FourbeeError, UsageError
from fourbee.foundation.memory import available_bytes
from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.kernels.native_ops import NativeOperations, open_native
from fourbee.model.attention_modes import DenseMode
from fourbee.model.hub import resolve_model
from fourbee.model.qwen3 import Qwen3Weights

# Rows of a step while a prompt is read, as in the engine.
STEP_ROWS = 512


class Bench:
    """A model that does works and says how long they took."""

    def __init__(self, weights: Qwen3Weights, ops: NativeOperations) -> None:
        config = weights.config
        self._vocabulary, self._context = config.vocab_size, config.max_position_embeddings
        self._weights, self._ops = weights, ops
        self._page_bytes = new_storage(config, ops, 1).page_bytes
        self._random = np.random.default_rng(1)

    def seconds(self, work: Work) -> float:
        """The time of the work alone; the depth is there before.

        UsageError for more positions than the model has, CapacityError where memory holds no such
        keys and values.
        """
        pages = -(-(work.positions + 1) // PAGE_KEYS)
        self._check_room(work, pages)
        runner = ModelRunner(self._weights, self._ops, pages * work.batch)
        sequences = [
            self._sequence(runner, work, range(first, first + pages))
            for first in range(0, pages * work.batch, pages)
        ]
        started = time.perf_counter()
        if work.kind == "prefill":
            for first in range(0, work.tokens, STEP_ROWS):
                count = min(STEP_ROWS, work.tokens - first)
                _step(runner, sequences, count)
        else:
            for _ in range(work.tokens):
                _step(runner, sequences, 1)
        return time.perf_counter() - started

    def _check_room(self, work: Work, pages: int) -> None:
        if work.positions > self._context:
            raise UsageError(
                f"{work.name}: {work.positions:,} positions; the model has {self._context:,}",
                "work",
            )
        needed, free = work.batch * pages * self._page_bytes, available_bytes()
        if free is not None and needed > free:
            raise CapacityError(
                f"{work.name}: {needed / 1e9:.1f} GB of keys and values; memory has "
                f"{free / 1e9:.1f} GB free"
            )

    def _sequence(self, runner: ModelRunner, work: Work, pages: range) -> Sequence:
        length = work.depth + (work.tokens if work.kind == "prefill" else 1)
        ids = tuple(self._random.integers(0, self._vocabulary, length).tolist())
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        longest = length + work.tokens + 1
        sequence = Sequence(
            Request("bench", ids, params), longest, set(), 0, mode=DenseMode(longest)
        )
        sequence.pages = list(pages)
        for page in pages:  # the memory is there before, as in an engine that has run for a while
            runner.storage.clear(page)
        if work.depth:
            _step(runner, [sequence], min(work.depth, PAGE_KEYS))
            # A real page of keys and values, as often as the depth needs.
            for page in sequence.pages[1:]:
                runner.storage.copy(sequence.pages[0], page)
            sequence.computed = work.depth
        return sequence


def _step(runner: ModelRunner, sequences: list[Sequence], count: int) -> None:
    chunks = tuple(Chunk(sequence, count) for sequence in sequences)
    for one in sequences:  # pages that are begun are cleared, as the engine does it
        first, end = -(-one.computed // PAGE_KEYS), -(-(one.computed + count) // PAGE_KEYS)
        for page in one.pages[first:end]:
            runner.storage.clear(page)
    outcomes = runner.sample(runner.run(chunks))
    for sequence, outcome in zip(sequences, outcomes, strict=True):
        sequence.computed += count
        if outcome.token:
            sequence.append(outcome.token.token_id)


def loaded_model(
    model: str | None, quantize: str, threads: int | None
) -> tuple[Qwen3Weights, NativeOperations]:
    """A checkpoint's weights, as `serve --backend native` has them."""
    checkpoint = open_checkpoint(resolve_model(model))
    config = checkpoint.config
    dtype = "bfloat16" if config.torch_dtype == "bfloat16" else "float32"
    ops = open_native(dtype, config.packed if quantize == "none" else quantize, threads)
    assert isinstance(ops, NativeOperations)
    return checkpoint.load_weights(ops), ops


def main() -> None:
    """Says that it is ready, then answers a line for a line; the last one may be an error."""
    try:
        _run()
    except FourbeeError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        raise SystemExit(error.exit_code) from None


def _run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="")
    parser.add_argument("--model", default=None)
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.shape:
        weights, ops = random_model(options.shape, options.quantize, options.threads)
    else:
        weights, ops = loaded_model(options.model, options.quantize, options.threads)
    size = weight_bytes(weights)
    bench = Bench(weights, ops)
    print(json.dumps({"weight_bytes": size}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": bench.seconds(Work(**json.loads(line)))}), flush=True)


if __name__ == "__main__":
    main()
