"""Recorded plans: the bits of operations called one by one, the abort flag and the heartbeat."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fourbee.kernels import _native as native
from fourbee.kernels.attention_pattern import Causal, SlidingWindow
from fourbee.kernels.native_ops import open_native
from fourbee.kernels.operations import Linear, StepInterrupted
from fourbee.kernels.paged_cache import own_cache, own_caches
from fourbee.model.qwen3 import BlockWeights, Qwen3Weights, forward
from tests.model.conftest import CONFIG


def random_weights(ops, rng, tied=True) -> Qwen3Weights:
    config = replace(
        CONFIG, hidden_size=128, intermediate_size=384, head_dim=128, num_hidden_layers=3
    )
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, 128

    def matrix(n, d, table=False):
        return ops.from_numpy((rng.standard_normal((n, d)) / 12).astype(np.float32), table=table)

    def norm(n):
        return ops.from_numpy(rng.uniform(0.5, 1.5, n).astype(np.float32))

    blocks = tuple(
        BlockWeights(
            norm(128), Linear(matrix(heads * size, 128)), Linear(matrix(kv_heads * size, 128)),
            Linear(matrix(kv_heads * size, 128)), norm(size), norm(size),
            Linear(matrix(128, heads * size)), norm(128), Linear(matrix(384, 128)),
            Linear(matrix(384, 128)), Linear(matrix(128, 384)),
        )
        for _ in range(3)
    )  # fmt: skip
    table = matrix(config.vocab_size, 128, table=True)
    return Qwen3Weights(config, table, blocks, norm(128), Linear(table))


@pytest.fixture(
    params=[("none", "auto"), ("int8", "auto"), ("int4", "auto"), ("none", "int4")], ids="-".join
)
def network(request):
    quantize, kv_type = request.param
    ops = open_native("float32", quantize, kv_type=kv_type)
    weights = random_weights(ops, np.random.default_rng(5))

    def run(ops, token_ids, positions, attention, rows):
        return forward(weights, token_ids, positions, attention, ops, rows=rows).final

    return ops, weights.config, run


def step(ops, network, caches, chunks, ids, rows):
    positions = np.concatenate([np.arange(c.length, c.length + n) for c, n in chunks])
    attention = ops.cached_attention(chunks)
    return network(ops, ids[: len(positions)], positions, attention, np.array(rows, dtype=np.int64))


def outputs(ops, config, network):
    """Three steps of two sequences: prompts, a mixture, single tokens."""
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 200)
    a, b = own_caches(ops, config.num_hidden_layers, config.num_key_value_heads, 128, [200, 200])
    return [
        step(ops, network, (a, b), [(a, 70), (b, 9)], ids, [69, 78]),
        step(ops, network, (a, b), [(a, 1), (b, 100)], ids, []),
        step(ops, network, (a, b), [(b, 1), (a, 1)], ids, [0, 1]),
    ], (a.length, b.length)


def test_a_plan_gives_the_same_bits_as_its_operations(network) -> None:
    ops, config, run = network
    expected, lengths = outputs(ops, config, run)
    found, found_lengths = outputs(ops, config, ops.planned(run))
    assert lengths == found_lengths == (72, 110)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.tobytes() == other.tobytes()
    assert len(found[1]) == 0


def test_steps_with_patterns_run_outside_the_plan(network) -> None:
    ops, config, run = network
    plan, ids = ops.planned(run), np.arange(100) % config.vocab_size
    results = []
    for chosen, pattern in ((run, SlidingWindow(3)), (plan, SlidingWindow(3)), (plan, Causal())):
        cache = own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, 128)
        attention = ops.cached_attention([(cache, 100)], [pattern])
        results.append(chosen(ops, ids, np.arange(100), attention, np.array([2, 99])))
        assert cache.length == 100
    windowed, planned, causal = results
    assert planned.tobytes() == windowed.tobytes()
    # What three positions see is the same; what comes later is not.
    assert np.array_equal(planned[0], causal[0]) and not np.allclose(planned[1], causal[1])


def test_an_aborted_step_leaves_its_caches_and_the_next_one_runs(network) -> None:
    ops, config, run = network
    plan = ops.planned(run)
    cache = own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, 128)
    ids = np.arange(40) % config.vocab_size
    native.abort()
    with pytest.raises(StepInterrupted):
        step(ops, plan, (cache,), [(cache, 40)], ids, [39])
    assert cache.length == 0
    again = step(ops, plan, (cache,), [(cache, 40)], ids, [39])
    fresh = own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, 128)
    assert again.tobytes() == step(ops, run, (fresh,), [(fresh, 40)], ids, [39]).tobytes()


def test_a_long_step_can_be_aborted_from_another_thread_while_its_heart_beats(network) -> None:
    ops, config, run = network
    plan = ops.planned(run)
    heads = config.num_key_value_heads
    cache = own_cache(ops, config.num_hidden_layers, heads, 128, 20_000)
    ids = np.zeros(20_000, dtype=np.int64)
    before = native.heartbeat()

    def abort_after_the_first_beat() -> None:
        while native.heartbeat() == before:
            time.sleep(0.001)
        native.abort()

    watcher = threading.Thread(target=abort_after_the_first_beat)
    watcher.start()
    with pytest.raises(StepInterrupted):
        step(ops, plan, (cache,), [(cache, 20_000)], ids, [0])
    watcher.join()
    assert before < native.heartbeat() < before + 20  # of 23 operations
    assert cache.length == 0


def test_wrong_buffers_and_widths_are_refused() -> None:
    plan = native.Plan()
    wide, kept = plan.buffer(128, False), plan.buffer(128, True)
    norm = np.ones(64, np.float32)
    with pytest.raises(ValueError, match="width of a buffer = 128: expected 64"):
        plan.norm(wide, norm, 1e-6, wide)
    with pytest.raises(ValueError, match=f"buffer {kept}: of other rows"):
        plan.norm(wide, np.ones(128, np.float32), 1e-6, kept)
    with pytest.raises(ValueError, match="buffer 7: there are 2"):
        plan.norm(7, np.ones(128, np.float32), 1e-6, wide)
