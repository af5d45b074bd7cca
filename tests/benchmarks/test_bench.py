"""`fourbee bench`: works and rates, fourbee's own worker, and llama.cpp's where it is installed."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fourbee
from fourbee.benchmarks import report, worker
from fourbee.benchmarks.peer_llama import deepened
from fourbee.benchmarks.report import table
from fourbee.benchmarks.roofline import Limits, best, share_of_limit
from fourbee.benchmarks.shapes import SHAPES, random_model, weight_bytes
from fourbee.benchmarks.work import Rate, Work, measure, running
from fourbee.cli import bench, run
from fourbee.foundation.errors import CapacityError, FourbeeError, UsageError

WORKER = [sys.executable, "-m", "fourbee.benchmarks.worker", "--shape", "tiny", "--threads", "1"]


def test_works_are_parsed_and_named() -> None:
    assert Work.parse("prefill:1024@4096") == Work("prefill", 1024, 4096)
    assert Work.parse("prefill:1024").name == "prefill 1024"
    assert Work.parse("decode:8") == Work("decode", 16, 16, 8)
    assert Work.parse("decode:1@4096").name == "decode, batch 1, depth 4096"
    for wrong in ("decode", "decode:0", "prefill:x", "sleep:3", "decode:1@-1", "decode:²"):
        with pytest.raises(UsageError, match="expected prefill:TOKENS"):
            Work.parse(wrong)
    assert Work.parse("prefill:1024@261120").positions == 262_144
    for large in ("prefill:1025@261120", "decode:1025", "decode:1@262129", "prefill:9" + "9" * 14):
        with pytest.raises(UsageError, match="at most 262,144 tokens with the depth, and a"):
            Work.parse(large)


def test_random_weights_are_finite_work_of_the_true_size() -> None:
    weights, _ = random_model("tiny", "int4", 1)
    layers, hidden, inner, heads, kv_heads, _ = SHAPES["tiny"]
    a_layer = 2 * hidden * 128 * (heads + kv_heads) + 3 * hidden * inner
    rows = layers * (2 * hidden + 128 * (heads + 2 * kv_heads) + 2 * inner)
    # A layer's rows have a float32 base each.
    bits = layers * a_layer * 4.25 + rows * 32 + 151_936 * hidden * 8.25
    assert weight_bytes(weights) == bits / 8


def test_random_weights_that_are_not_packed_are_bfloat16_of_an_even_size() -> None:
    weights, ops = random_model("tiny", "none", 1)
    layers, hidden, inner, heads, kv_heads, _ = SHAPES["tiny"]
    a_layer = 2 * hidden * 128 * (heads + kv_heads) + 3 * hidden * inner
    assert weight_bytes(weights) == 2 * (layers * a_layer + 151_936 * hidden)
    assert ops.kv_kind == "bf16"
    for one in (weights.blocks[0].gate, weights.blocks[1].down):
        values = ops.to_numpy(one.weight).astype(np.float32)
        assert np.isfinite(values).all() and np.unique(values).size > 200
        assert 0.7 < np.sqrt((values**2).mean() * values.shape[1]) < 1.4  # rows keep their size


def test_the_worker_does_works_at_a_depth_and_in_a_batch() -> None:
    works = [Work("prefill", 96, 0), Work("decode", 2, 500, 2), Work("prefill", 600, 70)]
    with running({"fourbee": WORKER}) as [system]:
        rates = [measure([system], work, rounds=2)["fourbee"] for work in works]
    for rate in rates:
        assert 0 < rate.low <= rate.median <= rate.high


def test_a_system_that_ends_is_told() -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    told = pytest.raises(FourbeeError, match="gone ended with code 3 at: start")
    with told, running({"gone": command}):
        pass


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--model", "no/such"], 2, "no/such"),
        (["--model", str(Path(__file__).parent)], 3, "config.json"),
        (["--shape", "tiny", "--threads", "100000"], 2, "threads"),
    ],
)
def test_what_the_worker_refuses_is_one_line(capfd, words, code, told) -> None:
    assert run(["bench", "offline", *words, "--work", "decode:1"]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fourbee: ") and told in lines[0]


def test_an_instruction_set_that_is_not_here_is_one_line(capfd, monkeypatch) -> None:
    monkeypatch.setenv("FOURBEE_ISA", "nonsense")
    assert run(["bench", "offline", "--shape", "tiny", "--work", "decode:1"]) == 2
    assert capfd.readouterr().err.startswith("fourbee: FOURBEE_ISA = 'nonsense': this machine runs")


def test_works_that_a_model_or_memory_cannot_hold_are_refused_with_numbers(monkeypatch) -> None:
    free = [10**9]
    monkeypatch.setattr(worker, "available_bytes", lambda: free[0])
    tiny = worker.Bench(*random_model("tiny", "int4", 1))
    # 1,563 pages a sequence, of two layers and heads: 64 keys and values of 132 bytes each.
    numbers = r"depth 100000: 108\.2 GB of keys and values; memory has 1\.0 GB free"
    with pytest.raises(CapacityError, match=numbers):
        tiny.seconds(Work("decode", 16, 100_000, 1024))
    assert tiny.seconds(Work("decode", 1, 64, 2)) > 0
    free[0] = 0
    with pytest.raises(CapacityError):
        tiny.seconds(Work("decode", 1, 64, 2))
    mini = worker.Bench(*worker.loaded_model(None, "none", 1))
    with pytest.raises(UsageError, match=r"prefill 100000: 100,000 positions; the model has \d,"):
        mini.seconds(Work("prefill", 100_000))


def test_shares_of_the_limit() -> None:
    most = Limits(read_bytes=50e9, int8=500e9, bf16=100e9)
    assert share_of_limit(Work("decode", 16), "0.6B", 0.5e9, 100, most) == 1.0
    # 0.6B: 440.4 million products a token in the layers, and attention over 512 keys on average.
    expected = (440_401_920 + 28 * 2 * 2048 * 512) * 500 / 500e9
    found = share_of_limit(Work("prefill", 1024), "0.6B", 0.5e9, 500, most)
    assert abs(found / expected - 1) < 1e-6


def test_limits_are_the_highest_of_several() -> None:
    assert best(Limits(1, 5, 3), Limits(2, 4, 1), Limits(0, 1, 2)) == Limits(2, 5, 3)


def test_each_share_is_of_the_best_limits_around_its_rounds(tmp_path, capsys, monkeypatch) -> None:
    slow, fast = Limits(10e9, 100e9, 50e9), Limits(20e9, 300e9, 100e9)
    # Two rounds, one of them to warm up, of each of two works.
    taken = iter([slow, fast, slow, slow])
    monkeypatch.setattr("fourbee.benchmarks.roofline.limits", lambda: next(taken))
    words = ["bench", "roofline", "--shape", "tiny", "--work", "prefill:8", "--work", "decode:3"]
    assert run([*words, "--rounds", "1", "--output", str(tmp_path)]) == 0
    assert next(taken, None) is None
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(document["limits_around"].values()) == [vars(fast), vars(slow)]
    assert document["limits"] == vars(fast)
    rate = document["results"][1]["tokens_per_second"]["fourbee"]["median"]
    size = document["weight_bytes"]["fourbee"]
    expected = share_of_limit(Work("decode", 16, 16, 3), "tiny", size, rate, slow)
    assert abs(document["shares_of_the_limit"]["decode, batch 3"] - expected) < 0.0006
    assert "Shares of the limits around each: prefill 8" in (
        (tmp_path / "roofline-tiny.md").read_text()
    )


def test_the_table_has_ratios() -> None:
    rates = {"fourbee": Rate(20, 19, 21), "other": Rate(10, 9, 11)}
    assert table({Work("decode", 16): rates}).splitlines()[-1] == (
        "| decode, batch 1 | 20.0 (19.0 - 21.0) | 10.0 (9.0 - 11.0) | 2.00 |"
    )


def test_offline_writes_one_document(tmp_path, capsys) -> None:
    words = ["bench", "offline", "--shape", "tiny", "--work", "prefill:64", "--work", "decode:2"]
    assert run([*words, "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["work"] for row in document["results"]] == ["prefill 64", "decode, batch 2"]
    assert document["machine"]["threads"] >= 1
    assert json.loads((tmp_path / "offline-tiny.json").read_text()) == document
    assert "| prefill 64 |" in (tmp_path / "offline-tiny.md").read_text()


def test_a_model_is_named_by_its_last_part_alone(tmp_path, capsys) -> None:
    folder = str(Path(fourbee.__file__).parent / "models" / "fourbee-mini")
    words = ["bench", "offline", "--model", folder, "--work", "decode:1", "--rounds", "1"]
    assert run([*words, "--threads", "1", "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["model"] == folder and document["quantize"] == "none"
    assert json.loads((tmp_path / "offline-fourbee-mini.json").read_text()) == document


def test_what_was_measured_before_a_system_ended_is_told(tmp_path, capsys, monkeypatch) -> None:
    def measured(systems, work: Work, *_) -> dict[str, Rate]:
        if work.batch == 2:
            raise FourbeeError("fourbee ended with code -9 at: decode, batch 2")
        return {"fourbee": Rate(2, 1, 3)}

    monkeypatch.setattr("fourbee.benchmarks.work.measure", measured)
    words = ["bench", "offline", "--shape", "tiny", "--work", "decode:1", "--work", "decode:2"]
    assert run([*words, "--output", str(tmp_path)]) == 3
    written = capsys.readouterr()
    assert "ended with code -9" in written.err
    document = json.loads(written.out.splitlines()[-1])
    assert [row["work"] for row in document["results"]] == ["decode, batch 1"]
    assert json.loads((tmp_path / "offline-tiny.json").read_text()) == document


def test_the_default_works_are_all_rows_of_the_table_of_speed() -> None:
    names = [Work.parse(text).name for text in bench._WORKS]
    assert names == [
        "prefill 1024", "prefill 4096", "prefill 1024, depth 4096", "decode, batch 1",
        "decode, batch 1, depth 4096", "decode, batch 1, depth 16384", "decode, batch 4",
        "decode, batch 8", "decode, batch 16",
    ]  # fmt: skip


def test_bad_words_get_one_line(capsys) -> None:
    assert run(["bench", "offline", "--shape", "5B"]) == 2
    assert "shape = '5B': expected one of 0.6B" in capsys.readouterr().err.replace("\n", " ")
    assert run(["bench", "offline", "--shape", "tiny", "--work", "walk:3"]) == 2
    assert "work = 'walk:3': expected prefill" in capsys.readouterr().err.replace("\n", " ")
    assert run(["bench", "offline", "--shape", "tiny", "--model", "fourbee-mini"]) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert "--model fourbee-mini and --shape tiny: expected one of them" in told
    for command in ("offline", "peers", "outside"):
        assert run(["bench", command, "--shape", "tiny", "--threads", "0"]) == 2
        assert "--threads 0: input should be greater than or" in capsys.readouterr().err
    assert run(["bench", "outside", "--shape", "tiny", "--batch", "1025"]) == 2
    assert "1025: input should be less than or equal to 1024" in capsys.readouterr().err
    assert run(["bench", "peers", "--peers-python", "/bin/false"]) == 2
    assert "has no llama_cpp and no openvino" in capsys.readouterr().err.replace("\n", " ")


def test_a_state_of_llama_cpp_is_repeated_to_its_depth() -> None:
    # One empty stream before it; three cells; one layer of keys (4 bytes a row), then values (2).
    def state(positions: list[int], keys: bytes, values: bytes) -> np.ndarray:
        count = len(positions)
        words = [7, 0, 2, 0, count, *(word for at in positions for word in (at, 1, 1)), 0, 1]
        parts = [np.array(words, np.uint32).tobytes()]
        for kind, width, rows in ((1, 4, keys), (2, 2, values)):
            parts += [np.uint32(kind).tobytes(), np.uint64(width).tobytes(), rows]
        return np.frombuffer(b"".join(parts) + b"end!", np.uint8)

    short = state([0, 1, 2], b"aaaabbbbcccc", b"xxyyzz")
    deep = state([0, 1, 2, 3, 4], b"aaaabbbbccccaaaabbbb", b"xxyyzzxxyy")
    assert deepened(short, 5).tobytes() == deep.tobytes()
    assert deepened(short, 3).tobytes() == short.tobytes()
    # A version with another layout: positions elsewhere, or less than it says.
    assert deepened(state([1, 2, 3], b"aaaabbbbcccc", b"xxyyzz"), 5) is None
    assert deepened(short[:-8], 5) is None


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvinos_constants_live_as_long_as_the_model(monkeypatch) -> None:
    # They lie where their arrays do: freed ones once ended the 4B's first step with signal 11.
    monkeypatch.syspath_prepend(str(Path(report.__file__).parent))  # a script finds its neighbour
    import peer_openvino

    config = {
        "num_hidden_layers": 1, "hidden_size": 256, "head_dim": 128, "intermediate_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
        "tie_word_embeddings": True, "rope_theta": 5e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    peer = peer_openvino.Peer(config, 1)
    # Seven matrices of four bits, numbers and zero points each.
    assert len(peer.builder.arrays) == 14
    assert peer.seconds("decode", 2, 100, 2) > 0


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
def test_peers_beside_each_other(capsys) -> None:
    words = ["bench", "peers", "--shape", "tiny", "--rounds", "1", "--work", "decode:1"]
    assert run(words) == 0
    assert "llama.cpp" in capsys.readouterr().out
