"""`fourbee plan`: times from their parts, GPUs by their data sheets, memory by the ledger."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fourbee.benchmarks import pace as pace_module
from fourbee.benchmarks import start, worker
from fourbee.benchmarks.checkpoint import write_packed, write_tokenizer
from fourbee.benchmarks.gpus import COMPUTE_SHARE, GPUS, MEMORY_SHARE, gpu_named, predicted_pace
from fourbee.benchmarks.pace import (
    CHUNK,
    Pace,
    Writing,
    key_bytes,
    layer_bytes,
    layer_products,
    measured_pace,
)
from fourbee.benchmarks.plan import Wish, document, page, plan_memory, plan_times, shares
from fourbee.benchmarks.roofline import Limits
from fourbee.benchmarks.shapes import random_weights, shape_config, weight_bytes
from fourbee.benchmarks.work import Work
from fourbee.cli import run
from fourbee.engine import ledger as ledger_module
from fourbee.engine.checkpoint import open_checkpoint
from fourbee.engine.ledger import KEYS, Setup, kv_pages, ledger, matrix_formats, page_bytes
from fourbee.foundation.errors import UsageError
from fourbee.kernels import _native
from fourbee.kernels.backends import native_built, open_operations
from fourbee.model.hub import resolve_model
from fourbee.model.packed_format import PackedFormat

GB = 1_000_000_000
needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


def setup(shape: str = "4B", **more) -> Setup:
    return Setup(shape_config(shape), **{"quantize": "int4", **more})


# ---- times


def test_a_prompt_is_its_chunks_and_all_pairs_of_rows_and_earlier_keys() -> None:
    pace = Pace(chunk=0.5, pair=1e-6, rest=0.25, writing=(Writing(1, 0.01, 1e-7, 0.002),))
    assert pace.reading_seconds(2, CHUNK) == pytest.approx(2 * 0.5 + 0.25)
    # Two whole chunks and a half one, after 0, 512 and 1,024 keys.
    pairs = CHUNK * CHUNK + CHUNK // 2 * 2 * CHUNK
    expected = 2 * (0.5 * 2.5 + pairs * 1e-6) + 0.25
    assert pace.reading_seconds(2, CHUNK * 5 // 2) == pytest.approx(expected)
    # A few rows read all weights.
    assert pace.reading_seconds(2, 1) == pytest.approx(2 * 0.01 + 0.25)


def test_a_step_is_its_layers_the_keys_of_all_and_the_rest() -> None:
    pace = Pace(1, 1, 1, (Writing(1, 9, 9, 9), Writing(4, 0.01, 1e-7, 0.002)))
    assert pace.step_seconds(3, 4, 1000) == pytest.approx(3 * (0.01 + 4 * 1000 * 1e-7) + 0.002)


class LawfulBench:
    """A machine whose times follow a law exactly."""

    chunk, pair, layer, key, rest = 0.04, 3e-8, 2e-3, 4e-7, 5e-3

    def __init__(self, weights, ops) -> None:
        self.layers = weights.config.num_hidden_layers

    def seconds(self, work: Work) -> float:
        if work.kind == "prefill":
            a_layer = self.chunk + work.tokens * work.depth * self.pair
            return self.layers * a_layer + self.rest
        keys = work.batch * (work.depth + work.tokens / 2)
        return work.tokens * (self.layers * (self.layer * work.batch**0.5 + keys * self.key)
                              + self.rest)  # fmt: skip


@needs_native
@pytest.mark.parametrize("table_bytes", [pace_module._TABLE_BYTES, 4_000_000])
def test_the_parts_of_a_lawful_machine_are_found(monkeypatch, table_bytes: int) -> None:
    monkeypatch.setattr("fourbee.benchmarks.worker.Bench", LawfulBench)
    monkeypatch.setattr(pace_module, "_TABLE_BYTES", table_bytes)
    small = Setup(replace(shape_config("tiny"), num_hidden_layers=9), quantize="int4")
    told: list[tuple[int, int]] = []
    found = measured_pace(small, (1, 4), 1, lambda *one: told.append(one))
    law = LawfulBench
    # With a part of the head's rows, what is outside of the layers is scaled up.
    head = max(1.0, 151_936 * 256 * 8.25 / 8 / table_bytes)
    assert found.chunk == pytest.approx(law.chunk) and found.pair == pytest.approx(law.pair)
    assert found.rest == pytest.approx(law.rest * head, rel=1e-3)
    for one, batch in zip(found.writing, (1, 4), strict=True):
        assert one.batch == batch and one.key == pytest.approx(law.key)
        assert one.layer == pytest.approx(law.layer * batch**0.5)
        assert one.rest == pytest.approx(law.rest * head, rel=1e-3)
    assert told[-1] == (told[-1][1],) * 2 and len(told) == told[-1][1]


def test_noise_and_single_layers_leave_no_negative_times() -> None:
    reading = Work("prefill", CHUNK)
    assert pace_module._Timed(reading, 1, 0.28, 0.3).parts() == (0.3, 0)
    assert pace_module._Timed(reading, 4, 0.3, 0.2).parts() == (0.05, 0)
    assert pace_module._Timed(reading, 3, 0.3, 0.9).parts() == pytest.approx((0.3, 0))
    fewer = pace_module._Timed(replace(reading, depth=512), 1, 0.2, 0.2)
    assert pace_module._Timed(reading, 1, 0.3, 0.3).key(fewer) == 0


@needs_native
@pytest.mark.parametrize("kind", ["none", "int8", "int4", "file"])
@pytest.mark.parametrize("kv_type", ["auto", "int4"])
def test_every_packing_is_timed(monkeypatch, kind: str, kv_type: str) -> None:
    monkeypatch.setattr(pace_module, "ROUNDS", 1)
    monkeypatch.setattr(pace_module, "_DEPTH", 256)
    config = replace(shape_config("tiny"), vocab_size=2000, tie_word_embeddings=False)
    formats = {}
    if kind == "file":  # as GGUF has them, not alike in all layers
        names = matrix_formats(Setup(config))
        formats = {
            name: PackedFormat("int4a" if "layers.0" in name else "int8", 32) for name in names
        }
    quantize = "none" if kind == "file" else kind
    one = Setup(config, quantize=quantize, kv_type=kv_type, formats=formats)
    found = measured_pace(one, (1, 2), 1)
    assert found.chunk > 0 and [w.batch for w in found.writing] == [1, 2]
    assert all(found.step_seconds(2, batch, 64) > 0 for batch in (1, 2))


def test_a_sample_is_spread_over_the_layers_and_of_enough_bytes() -> None:
    for shape in ("0.6B", "4B", "8B"):
        whole = setup(shape)
        sample = pace_module._sample(whole)
        count = sample.config.num_hidden_layers
        assert 3 <= count < whole.config.num_hidden_layers
        assert count == 3 or count * layer_bytes(whole) >= 96_000_000
        assert sample.config.hidden_size == whole.config.hidden_size
        assert len(sample.formats) == 7 * count + 1
    config = replace(shape_config("4B"), num_hidden_layers=6, tie_word_embeddings=False)
    names = matrix_formats(Setup(config))
    formats = {
        name: PackedFormat("int8" if re.search(r"layers\.[2-5]|lm_head", name) else "int4a", 32)
        for name in names
    }
    sample = pace_module._sample(Setup(config, formats=formats))
    kinds = [sample.formats[f"model.layers.{i}.mlp.up_proj.weight"].kind for i in range(3)]
    assert kinds == ["int4a", "int8", "int8"]
    assert sample.formats["model.embed_tokens.weight"].kind == "int8"


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_are_of_the_bytes_that_the_ledger_has(dtype: str) -> None:
    config = replace(shape_config("tiny"), vocab_size=300, tie_word_embeddings=False)
    for quantize in ("none", "int8", "int4"):
        one = Setup(config, dtype=dtype, quantize=quantize)
        ops = open_operations("native", "cpu", dtype, dtype, quantize)
        weights = random_weights(config, matrix_formats(one), ops)
        vectors = sum(4 * np.prod(s) for s in [(256,)] * 5 + [(128,)] * 4)
        embedding = weights.embedding.packed.data.nbytes
        assert weight_bytes(weights) + embedding + vectors == ledger_module.weight_bytes(one)


# ---- GPUs


def test_gpus_are_found_whatever_their_names_are_written_like() -> None:
    for name in ("4090D", "4090 d", "RTX 4090D", "NVIDIA GeForce RTX 4090 D", "rtx-4090d"):
        assert gpu_named(name).name == "4090D"
    assert gpu_named("a100 80gb").memory == 80 * GB
    assert len({one.name for one in GPUS}) == len(GPUS)
    for one in GPUS:
        assert gpu_named(one.name) is one
        # Orders of magnitude: nothing is in other units.
        assert 10 * GB < one.memory < 300 * GB
        assert 2e11 < one.read_bytes < 1e13 and 2e13 < one.bf16 < 2e15
    with pytest.raises(UsageError, match=r"--gpu 4090x: expected one of 3090, .*did you mean"):
        gpu_named("4090x")


def test_a_gpus_answer_alone_reads_all_weights_once_a_token() -> None:
    card, one = gpu_named("4090"), Setup(shape_config("4B"), "torch", on_gpu=True)
    pace = predicted_pace(one, card, (1, 16))
    layers = one.config.num_hidden_layers
    matrices = 2 * (layers * layer_products(one.config) + 151_936 * 2560)
    kernels = layers * 20e-6
    least = matrices / (card.read_bytes * MEMORY_SHARE) + kernels
    assert pace.step_seconds(layers, 1, 0) == pytest.approx(least, rel=1e-6)
    keys = layers * key_bytes(one) * 10_000 / (card.read_bytes * MEMORY_SHARE)
    more = pace.step_seconds(layers, 16, 10_000) - pace.step_seconds(layers, 16, 0)
    assert more == pytest.approx(16 * keys)
    # A prompt is bound by products, its head aside.
    products = layers * layer_products(one.config) * 4096 / (card.bf16 * COMPUTE_SHARE)
    assert products < pace.reading_seconds(layers, 4096) < 1.3 * products


# ---- memory


def test_a_plan_fits_what_serve_would_fit(monkeypatch) -> None:
    usable = 20 * GB
    monkeypatch.setattr(ledger_module, "usable_bytes", lambda: usable)
    monkeypatch.setattr("fourbee.benchmarks.plan.usable_bytes", lambda: usable)
    for memory in (None, 12 * GB):
        found = plan_memory(Wish(setup(), memory))
        fitted = kv_pages(setup(), memory)
        assert found.fits and found.context == fitted.context_length
        assert found.ledger.bytes_of(KEYS) == fitted.pages * page_bytes(setup().config, "int8")
        assert found.usable == fitted.memory and found.reserve == fitted.reserve
        others = {one.kv_type: one.context for one in found.types}
        assert others["int8"] == found.context
        assert others["int4"] == dict(fitted.others)["int4"]
        assert list(others) == ["bfloat16", "int8", "int4"]


def test_users_share_what_there_is() -> None:
    alone, four = (plan_memory(Wish(setup(), 10 * GB, users=users)) for users in (1, 4))
    assert alone.context / 4 - 64 <= four.context <= alone.context / 4
    assert four.fits and four.types[1].bytes <= alone.types[1].bytes


def test_what_was_asked_for_is_planned_whether_it_fits_or_not() -> None:
    wish = Wish(setup(), 16 * GB, context=32_768, users=4)
    found = plan_memory(wish)
    assert found.fits and found.context == 32_768
    assert found.ledger.total == ledger(setup(), 4 * 32_768, 32_768).total
    assert not plan_memory(replace(wish, users=8)).fits
    assert [one.context for one in plan_memory(Wish(setup("8B"), 3 * GB)).types] == [0, 0, 0]
    with pytest.raises(UsageError, match="--context 300000: the model has 262144 positions"):
        Wish(setup(), context=300_000)


def test_times_are_told_up_to_the_context_and_for_as_many_as_run() -> None:
    pace = Pace(0.1, 1e-8, 0.1, (Writing(1, 0.001, 1e-8, 0.01), Writing(16, 0.01, 1e-8, 0.01)))
    wish = Wish(setup(), 16 * GB, users=40)
    assert wish.batch == 16
    times = plan_times(wish, pace, 5000)
    assert [one.tokens for one in times] == [1024, 4096, 5000]
    last = times[-1]
    assert last.read_seconds == pace.reading_seconds(36, 5000)
    assert last.alone == 1 / pace.step_seconds(36, 1, 5000)
    assert last.together == 16 / pace.step_seconds(36, 16, 5000)
    memory = plan_memory(wish)
    lines = page("4B", "on a CPU", wish, memory, pace, Limits(50e9, 5e11, 2e11), "by law")
    assert "of 40 users 16 are answered at a time" in "\n".join(lines)
    assert any(line.startswith("  this machine: 50 GB/s, int8 500 and") for line in lines)


def test_shares_of_the_limits() -> None:
    config, most = shape_config("4B"), Limits(50e9, 500e9, 100e9)
    products = layer_products(config)
    writing = Writing(1, layer_bytes(setup()) / 40e9, key_bytes(setup()) / 25e9, 0)
    pace = Pace(CHUNK * products / 250e9, 2 * config.query_size / 125e9, 0, (writing,))
    found = shares(setup(), pace, most)
    assert list(found.values()) == pytest.approx([0.5, 0.25, 0.8, 0.5])
    dense = shares(setup(quantize="none"), pace, most)
    assert dense["a prompt's products"] == pytest.approx(2.5)


# ---- the command


def test_the_page_and_its_document(capsys) -> None:
    words = ["plan", "--shape", "4B", "--quantize", "int4", "--memory", "16GB", "--no-measure"]
    assert run(words) == 0
    told = capsys.readouterr()
    assert "fits: 16.0 GB, of which 1.6 GB stay free" in told.out and not told.err
    assert "time: not measured (--no-measure)" in told.out
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory = plan_memory(Wish(setup(), 16 * GB))
    assert found["fits"] and found["context"] == memory.context and found["times"] == []
    assert found["total_bytes"] == sum(found["memory"].values()) == memory.ledger.total
    assert {one["kv_type"]: one["context"] for one in found["kv_types"]} == {
        one.kv_type: one.context for one in memory.types
    }


def test_a_gpu_is_a_prediction_and_says_so(capsys) -> None:
    assert run(["plan", "--shape", "4B", "--gpu", "rtx 4090 d", "--users", "2"]) == 0
    out = capsys.readouterr().out
    assert "time: a prediction, not measured: 50% of the products and 70% of the bandwidth" in out
    assert "weights in bfloat16, keys and values in bfloat16" in out and "24.0 GB" in out
    assert "all of 2 together" in out


@needs_native
def test_times_are_measured_here(capsys, monkeypatch) -> None:
    monkeypatch.setattr(pace_module, "ROUNDS", 1)
    monkeypatch.setattr("fourbee.benchmarks.roofline.limits", lambda: Limits(5e10, 5e11, 2e11))
    words = ["plan", "--shape", "tiny", "--quantize", "int4", "--context", "2000", "--threads", "1"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["tokens"] for one in found["times"]] == [1024, 2000]
    assert all(one["read_seconds"] > 0 and one["alone"] > 0 for one in found["times"])
    assert found["limits"]["read_bytes"] == 5e10 and found["shares_of_the_limits"]


@needs_native
def test_a_model_of_few_positions_is_timed_too(capsys, monkeypatch) -> None:
    monkeypatch.setattr(pace_module, "ROUNDS", 1)
    monkeypatch.setattr("fourbee.benchmarks.roofline.limits", lambda: Limits(5e10, 5e11, 2e11))
    assert run(["plan", "--memory", "2GB", "--threads", "1", "--users", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "fourbee-mini"
    assert [one["tokens"] for one in found["times"]] == [1024, 2048]


def test_only_the_configuration_of_a_folder_is_read(tmp_path, capsys) -> None:
    config = replace(shape_config("0.6B"), max_position_embeddings=40_960)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    words = ["plan", str(tmp_path), "--no-measure", "--memory", "8GB", "--json"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["weights"] == ledger_module.weight_bytes(Setup(config))
    assert found["context"] == 40_960


def test_only_the_header_of_a_gguf_file_is_read(tmp_path, write_gguf, capsys) -> None:
    config = replace(shape_config("tiny"), vocab_size=320)
    tensors = {
        name: np.ones(shape, np.float32)
        for name, shape in ledger_module.tensor_shapes(config).items()
    }
    path = write_gguf(tmp_path / "model.gguf", config, tensors)
    assert run(["plan", str(path), "--no-measure", "--memory", "8GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["weights"] == 4 * config.num_parameters


def test_the_embedded_model_is_planned_by_default(capsys) -> None:
    assert run(["plan", "--no-measure", "--memory", "512MB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fourbee-mini, on a CPU") and "2,048 tokens\n" in out
    files = open_checkpoint(resolve_model(None))
    assert kv_pages(Setup(files.config), 512_000_000).context_length == 2048


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 5B", "shape = '5B': expected one of 0.6B"),
        ("--shape 4B --memory lots", "--memory lots: expected a size such as 20GB"),
        ("--shape 4B --gpu 9090", "--gpu 9090: expected one of 3090"),
        ("--shape 4B --gpu L4 --quantize int4", "fourbee runs GPUs in bfloat16"),
        ("--shape 4B --kv-type int5", "kv_type = 'int5': expected one of auto, float32"),
        ("--shape 4B --context 0", "--context 0: input should be greater than"),
        ("--shape 4B --context 262145", "--context 262145: the model has 262144 positions"),
        ("some/model --shape 4B", "expected a model or a shape, not both"),
    ],
)
def test_bad_words_get_one_line(words: str, message: str, capsys) -> None:
    assert run(["plan", *words.split(), "--no-measure"]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_plan_without_times_needs_neither_torch_nor_the_kernels() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['fourbee.kernels._native'] = None\n"
        "from fourbee.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    words = ["plan", "--shape", "4B", "--quantize", "int4", "--memory", "16GB"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fits: 16.0 GB" in done.stdout
    assert "time: not measured: the native kernels do not run this model here" in done.stdout


def test_what_does_not_fit_is_said_and_is_no_error(capsys) -> None:
    assert run(["plan", "--shape", "8B", "--memory", "4GB", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "DOES NOT FIT: 4.0 GB" in out and out.count("none") == 3


def test_the_document_has_no_times_without_a_pace() -> None:
    wish = Wish(setup(), 16 * GB)
    assert document(wish, plan_memory(wish), None, None, "no")["times"] == []


# ---- against what is measured


@pytest.mark.long
@pytest.mark.timeout(1200)
@needs_native
@pytest.mark.parametrize(("shape", "kv_type"), [("0.6B", "auto"), ("0.6B", "int4"), ("4B", "auto")])
def test_times_are_predicted_within_a_fifth(monkeypatch, shape: str, kv_type: str) -> None:
    # Processor time of one thread: what else runs on the machine is not in it. On a quiet machine
    # FOURBEE_QUIET=1 takes the wall's clock and all threads.
    threads = None
    if not os.environ.get("FOURBEE_QUIET"):
        threads = 1
        monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=time.process_time))
    one = setup(shape, kv_type=kv_type)
    layers = one.config.num_hidden_layers
    pace = measured_pace(one, (1, 4), threads)
    ops = open_operations("native", "cpu", "float32", "float32", "int4", kv_type=kv_type)
    _native.set_threads(threads or len(os.sched_getaffinity(0)))
    bench = worker.Bench(random_weights(one.config, matrix_formats(one), ops), ops)
    works = [Work("prefill", 1024), Work("decode", 16, 16), Work("decode", 16, 4096),
             Work("decode", 16, 4096, 4)]  # fmt: skip
    works += [Work("prefill", 4096), Work("decode", 16, 16_384)] if shape == "0.6B" else []
    ratios = {}
    for work in works:
        seconds = statistics.median(bench.seconds(work) for _ in range(3))
        if work.kind == "prefill":
            predicted = pace.reading_seconds(layers, work.tokens)
        else:
            predicted = 16 * pace.step_seconds(layers, work.batch, work.depth + 8)
        ratios[work.name] = predicted / seconds
        print(f"{shape} {kv_type} {work.name}: {predicted:.3f} s, measured {seconds:.3f} s")
    assert all(0.8 <= ratio <= 1.2 for ratio in ratios.values()), ratios


@pytest.mark.long
@pytest.mark.timeout(1200)
@needs_native
@pytest.mark.parametrize(("shape", "context"), [("0.6B", 4096), ("0.6B", 8192), ("4B", 2048)])
def test_memory_is_predicted_within_a_tenth(tmp_path, shape: str, context: int) -> None:
    folder = tmp_path / shape
    folder.mkdir()
    write_packed(folder, shape)
    tokenizer = write_tokenizer(folder)
    command = [sys.executable, "-m", "fourbee", "serve", "--model", str(folder), "--port", "0"]
    with start.serving(command) as (process, url):
        ids = [1000 + index * 7 % 1000 for index in range(context - 8)]
        start._complete(url, shape, ids, 8)
        found = sum(private_share(one) for one in start._family(process.pid))
    files = open_checkpoint(folder)
    expected = ledger(Setup(files.config, formats=files.formats), context).total
    if tokenizer != "Qwen3":  # without the test data it is fourbee-mini's, of 4,096 tokens
        expected -= ledger_module.TOKEN_BYTES * (files.config.vocab_size - 4096)
    print(f"{shape}, {context} tokens: ledger {expected / 1e6:.0f} MB, taken {found / 1e6:.0f} MB")
    assert 0.9 <= expected / found <= 1.1


def private_share(pid: int) -> int:
    """A process's memory, files too; what several processes share counts in parts (Pss)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024
