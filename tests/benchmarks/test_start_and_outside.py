"""`fourbee bench start` and `outside`: processes, their memory, and the counter of the kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from fourbee.benchmarks import start
from fourbee.benchmarks.checkpoint import write_packed, write_tokenizer
from fourbee.benchmarks.outside import STEPS, measure_outside, random_llm
from fourbee.benchmarks.shapes import shape_config
from fourbee.cli import run
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.foundation.errors import FourbeeError
from fourbee.kernels import _native


def test_a_packed_checkpoint_is_mapped_and_has_int8_keys(tmp_path) -> None:
    size = write_packed(tmp_path, "tiny")
    assert write_tokenizer(tmp_path) in ("Qwen3", "fourbee-mini")
    file = tmp_path / "model.safetensors"
    assert size < file.stat().st_size < size + 10_000
    llm = LLM.load(tmp_path)
    pages = llm.engine._runner.storage
    answer = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True, seed=0))[0]
    assert len(answer.token_ids) == 3 and answer.error is None
    # 64 positions of two layers and heads: keys and values of a byte, a scale each.
    assert pages.page_bytes == 2 * 2 * 2 * 64 * (128 + 4)
    for block in llm.engine._runner._weights.blocks:
        assert _over_a_file(block.gate.weight.packed.data)


def _over_a_file(array: np.ndarray) -> bool:
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return isinstance(base, np.memmap) or type(base.base).__name__ == "mmap"


def test_the_counter_counts_the_kernels_and_nothing_else() -> None:
    before = _native.busy_seconds()
    time.sleep(0.05)
    assert _native.busy_seconds() == before
    started = time.perf_counter()
    _native.read_bandwidth(np.ones(64 << 20, dtype=np.uint8))
    inside, wall = _native.busy_seconds() - before, time.perf_counter() - started
    assert 0.001 < inside < wall


def test_what_is_outside_is_counted_through_the_whole_engine(monkeypatch) -> None:
    llm = random_llm("tiny", 1)
    found = measure_outside(llm, 2, rounds=1)
    assert found.batch == 2 and 0 < found.low == found.median == found.high < 1

    # A pause in every step is outside, whatever the machine does meanwhile.
    step = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda: (time.sleep(0.02), step())[1])
    slower = measure_outside(llm, 2, rounds=1)
    assert slower.median > found.median and slower.step_seconds > 0.02
    assert STEPS * slower.step_seconds * slower.median > STEPS * 0.02


def test_outside_writes_its_document(tmp_path, capsys) -> None:
    words = ["bench", "outside", "--shape", "tiny", "--batch", "1", "--batch", "3"]
    assert run([*words, "--threads", "1", "--rounds", "1", "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["batch"] for row in document["results"]] == [1, 3]
    assert json.loads((tmp_path / "outside-tiny.json").read_text()) == document
    assert "| batch | a step, ms | outside" in (tmp_path / "outside-tiny.md").read_text()


def test_keys_and_values_of_the_4b_in_int8() -> None:
    config = shape_config("4B")
    assert start.kv_bytes("4B", 4096) == 36 * 2 * config.num_key_value_heads * 132 * 4096


def test_start_measures_a_server_and_its_memory(tmp_path, capsys) -> None:
    words = ["bench", "start", "--shape", "tiny", "--context", "200", "--rounds", "1"]
    assert run([*words, "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.2 < document["ready_seconds"]["median"] < document["answer_seconds"]["median"]
    assert document["packed_bytes"] > 40e6
    assert document["kv_bytes"] == 2 * 2 * 2 * 132 * 200
    # Anonymous memory is counted, and the 41 MB of weights are not in it twice.
    assert 50e6 < document["ready_bytes"] <= document["most_bytes"] < 400e6
    beyond = document["most_bytes"] - document["kv_bytes"]
    assert 0 <= document["beyond_bytes"] - beyond < 10_000  # the file's header
    assert "| process start to ready, s |" in (tmp_path / "start-tiny.md").read_text()


def test_a_server_that_does_not_start_is_told(tmp_path) -> None:
    with pytest.raises(FourbeeError, match=r"ended before it was ready: .*config\.json"):
        start.measure_start(tmp_path / "nothing", 0)


def test_anonymous_memory_is_that_of_the_whole_family() -> None:
    child = "import time; kept = bytearray(60_000_000); print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            assert start.anonymous_bytes(process.pid) > 60_000_000
            [below] = [one for one in start._family(process.pid) if one != process.pid]
        finally:
            process.kill()
            subprocess.run(["kill", str(below)], check=True)
