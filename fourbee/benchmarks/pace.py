"""How long a model's work will take: the time of its parts, added up.

On a CPU the parts are timed on the spot with some layers of the true widths and random weights, so
that a 4B needs a few seconds and no file; on a named GPU they are worked out from its data sheet.
A prediction knows nothing of other work on the machine, of queues or of prefixes that are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourbee.benchmarks.shapes import random_weights
from fourbee.benchmarks.work import SHORT, Work
from fourbee.engine.ledger import Setup, matrix_formats, page_bytes, tensor_bytes
from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.model.config import Qwen3Config
from fourbee.model.packed_format import PackedFormat
from fourbee.model.qwen3 import Qwen3Weights

if TYPE_CHECKING:
    from fourbee.kernels.native_ops import NativeOperations

# Rows of a prompt that are computed at a time.
CHUNK = 512
# Layers are timed with at least so many bytes of weights: what is in the cache is too fast.
_LAYERS_BYTES = 96_000_000
_LEAST_LAYERS = 3
# Of a table (embedding, head), which only the head's time depends on, and that in proportion.
_TABLE_BYTES = 512_000_000
# A depth to time keys at, of all sequences of a batch together.
_DEPTH, _DEPTHS = 4096, 32_768
_STEPS = 16
_FIRST = "model.layers.0."
ROUNDS = 4
# A machine that is busy with other things gets no more rounds after this.
_MOST_SECONDS = 12.0

Told = Callable[[int, int], None]  # works done, works in all


@dataclass(frozen=True)
class Writing:
    """Seconds of a step that writes a token for each sequence of a batch."""

    batch: int
    layer: float  # of a layer, few keys before it
    key: float  # of one position of one sequence, in a layer
    rest: float  # outside of the layers: embedding, head, sampling, scheduling


@dataclass(frozen=True)
class Pace:
    """Seconds of the parts of a model's work."""

    chunk: float  # of a layer, for CHUNK rows of a prompt without keys before them
    pair: float  # of a row and a key before its chunk, in a layer
    rest: float  # of a prompt, outside of the layers
    writing: tuple[Writing, ...]

    def reading_seconds(self, layers: int, tokens: int) -> float:
        """Until a prompt is read and its first token is there."""
        chunks = [(start, min(CHUNK, tokens - start)) for start in range(0, tokens, CHUNK)]
        pairs = sum(start * rows for start, rows in chunks)
        # Few rows cost what reading the weights costs.
        least = min((one.layer for one in self.writing), default=0.0)
        own = sum(max(self.chunk * rows / CHUNK, least) for _, rows in chunks)
        return layers * (own + pairs * self.pair) + self.rest

    def step_seconds(self, layers: int, batch: int, depth: int) -> float:
        """Of a step of `batch` sequences with so many positions each."""
        [one] = (one for one in self.writing if one.batch == batch)
        return layers * (one.layer + batch * depth * one.key) + one.rest


def layer_products(config: Qwen3Config) -> int:
    """Multiply-adds of one row with the matrices of a layer."""
    hidden = config.hidden_size
    attention = 2 * hidden * (config.query_size + config.key_value_size)
    return attention + 3 * hidden * config.intermediate_size


def key_bytes(setup: Setup) -> float:
    """Of the keys and values of a position in one layer."""
    layers = setup.config.num_hidden_layers
    return page_bytes(setup.config, setup.kept_keys) / PAGE_KEYS / layers


def layer_bytes(setup: Setup) -> int:
    """Of the weights of a layer, on average."""
    sizes = tensor_bytes(setup).items()
    layers = sum(size for name, size in sizes if name.startswith("model.layers."))
    return layers // setup.config.num_hidden_layers


def measured_pace(
    setup: Setup, batches: Sequence[int], threads: int | None = None,
    told: Told = lambda done, total: None,
) -> Pace:  # fmt: skip
    """Times the parts on this machine, with the native operations."""
    from fourbee.kernels.native_ops import NativeOperations, open_native

    ops = open_native(setup.compute_type, setup.quantize, threads, setup.kept_keys)
    assert isinstance(ops, NativeOperations)
    sample = _sample(setup)
    weights = random_weights(sample.config, sample.formats, ops)
    layers = len(weights.blocks)
    few = min(layers, _LEAST_LAYERS)
    works = [(Work("prefill", CHUNK), few), (Work("prefill", CHUNK, _DEPTH), few)]
    for batch in batches:
        depth = max(PAGE_KEYS, min(_DEPTH, _DEPTHS // batch))
        works += [(Work("decode", _STEPS, where, batch), layers) for where in (SHORT, depth)]
    first, second, *rest = _timed(weights, ops, works, told)
    chunk, outside = first.parts()
    pairs = [
        _writing(few_keys, many_keys, sample.head_share)
        for few_keys, many_keys in zip(rest[::2], rest[1::2], strict=True)
    ]
    return Pace(chunk, first.key(second), outside / sample.head_share, tuple(pairs))


@dataclass(frozen=True)
class _Timed:
    """Seconds that a work took with one layer, and with so many."""

    work: Work
    layers: int
    shallow: float
    deep: float

    def parts(self) -> tuple[float, float]:
        """A layer's seconds, and those of the rest."""
        layer = (self.deep - self.shallow) / max(1, self.layers - 1)
        if self.layers == 1 or layer <= 0:  # one layer only, or little beside the noise
            return self.deep / self.layers, 0.0
        return layer, max(0.0, self.shallow - layer)

    def key(self, deeper: _Timed) -> float:
        """What one more key costs a row in a layer; `deeper` is the same work after more keys."""
        rows = self.work.tokens * self.work.batch
        keys = deeper.work.depth - self.work.depth
        return max(0.0, (deeper.deep - self.deep) / self.layers / rows / keys)


def _timed(
    weights: Qwen3Weights, ops: NativeOperations, works: Sequence[tuple[Work, int]], told: Told
) -> list[_Timed]:
    """Medians of some rounds of all works in turn, after one to warm up."""
    from fourbee.benchmarks.worker import Bench

    benches = {count: Bench(_cut(weights, count), ops) for count in {1, *(n for _, n in works)}}
    taken: list[list[tuple[float, float]]] = [[] for _ in works]
    started, done = time.perf_counter(), 0
    for number in range(ROUNDS + 1):
        for kept, (work, layers) in zip(taken, works, strict=True):
            seconds = benches[1].seconds(work), benches[layers].seconds(work)
            kept += [seconds] if number else []
            done += 1
            told(done, (ROUNDS + 1) * len(works))
        if number and time.perf_counter() - started > _MOST_SECONDS:
            break
    medians = [map(statistics.median, zip(*one, strict=True)) for one in taken]
    return [
        _Timed(work, layers, *found) for (work, layers), found in zip(works, medians, strict=True)
    ]


def _writing(few: _Timed, many: _Timed, head_share: float) -> Writing:
    steps, batch = few.work.tokens, few.work.batch
    layer, rest = (part / steps for part in few.parts())
    key = few.key(many)
    own = batch * (few.work.depth + steps / 2) * key
    return Writing(batch, max(0.0, layer - own), key, rest / head_share)


@dataclass(frozen=True)
class _Sample:
    """Some layers of a model, spread over it, and of its head as many rows as are worth it."""

    config: Qwen3Config
    formats: dict[str, PackedFormat]
    head_share: float  # of the head's rows


def _sample(setup: Setup) -> _Sample:
    config, formats, sizes = setup.config, matrix_formats(setup), tensor_bytes(setup)
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    first = [name for name in formats if name.startswith(_FIRST)]
    count = -(-_LAYERS_BYTES // layer_bytes(setup))
    count = min(config.num_hidden_layers, max(_LEAST_LAYERS, count))
    rows = min(config.vocab_size, _TABLE_BYTES * config.vocab_size // sizes[head])
    taken = {embedding: formats[head]}
    for layer in range(count):
        source = layer * config.num_hidden_layers // count
        for name in first:
            taken[name.replace(_FIRST, f"model.layers.{layer}.")] = formats[
                name.replace(_FIRST, f"model.layers.{source}.")
            ]
    sample = replace(
        config, num_hidden_layers=count, tie_word_embeddings=True, vocab_size=rows,
        quantization=None, max_position_embeddings=max(config.max_position_embeddings, 2 * _DEPTH),
    )  # fmt: skip
    return _Sample(sample, taken, rows / config.vocab_size)


def _cut(weights: Qwen3Weights, layers: int) -> Qwen3Weights:
    config = replace(weights.config, num_hidden_layers=layers)
    return replace(weights, config=config, blocks=weights.blocks[:layers])
