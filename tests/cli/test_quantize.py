"""`fourbee quantize`: the embedded model in four bits talks on, and usage is told in one line."""

from __future__ import annotations

import json

import pytest

from fourbee.engine.checkpoint import open_checkpoint
from fourbee.training.generators import generate
from fourbee.training.generators.lexicon import load_lexicon


def test_the_embedded_model_is_packed_and_loads(fourbee, tmp_path) -> None:
    target = tmp_path / "packed"
    outcome = fourbee("quantize", "fourbee-mini", target)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out.splitlines()[-1])
    assert (
        4.25 < document["bits_per_weight"] < 5
        and document["tables"] == "int8"
        and document["rotated"] is True
    )
    assert document["bytes_after"] < document["bytes_before"] * 0.62
    assert 0.05 < document["mean_error"] < 0.1
    assert "4.94 bits a weight" in outcome.err
    checkpoint = open_checkpoint(target)
    checkpoint.check()
    assert checkpoint.tokenizer.chat_template is not None
    assert fourbee("generate", "What is 2 + 2?", "-m", target, "--max-tokens", 4).code == 0
    again = fourbee("quantize", "fourbee-mini", target)
    assert again.code == 2
    assert again.err == f"fourbee: {target}: exists; expected a new or an empty folder\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bits", 5], "--bits 5: expected 4, 8 or 16"),
        (["--group", 48], "--group 48: expected 32, 64 or 128"),
        (["--bits", 8, "--method", "search"], "--method search: for --bits 4 only; leave it out"),
        (["--bits", 8, "--method", "gptq"], "--method gptq: for --bits 4 only; leave it out"),
        (
            ["--method", "gptq"],
            "--method gptq: needs texts like those that the model will see: "
            "--calibration FILE, a .jsonl of samples or a .txt",
        ),
        (["--calibration", "a.txt"], "--calibration a.txt: for --method gptq only"),
        (["--method", "gptq", "--calibration", "no.txt"], "--calibration no.txt: no such file"),
    ],
)
def test_what_cannot_be_packed_is_one_line(fourbee, tmp_path, words, expected) -> None:
    outcome = fourbee("quantize", "fourbee-mini", tmp_path / "packed", *words)
    assert (outcome.code, outcome.err) == (2, f"fourbee: {expected}\n")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A file of samples as `fourbee data generate` writes them."""
    mixture = {"passage": 3, "tools": 2, "arithmetic": 2, "about": 1}
    drawn = generate.samples(
        1, generate.DataFile("calibration", (generate.Phase(14, mixture),)), load_lexicon()
    )
    return generate.write_samples(tmp_path_factory.mktemp("data") / "samples.jsonl", drawn)


def test_a_calibrated_model_is_packed_talks_and_says_what_it_is(fourbee, tmp_path, samples) -> None:
    target = tmp_path / "packed"
    words = ["--method", "gptq", "--calibration", samples]
    outcome = fourbee("quantize", "fourbee-mini", target, *words)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out.splitlines()[-1])
    assert (document["method"], document["rotated"], document["group"]) == ("gptq", True, 64)
    open_checkpoint(target).check()
    asked = fourbee("generate", "What is 2 + 2?", "-m", target, "--max-tokens", 60)
    assert asked.code == 0 and "4" in asked.out


def test_calibration_that_cannot_be_used_is_one_line(fourbee, tmp_path) -> None:
    def told(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        words = ["--method", "gptq", "--calibration", path]
        outcome = fourbee("quantize", "fourbee-mini", tmp_path / "packed", *words)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert not (tmp_path / "packed").exists()
        return outcome.err.removeprefix("fourbee: ").strip()

    file = tmp_path / "a"
    assert told("a.txt", b"few words").startswith("calibration: ")
    assert told("a.txt", b"few words").endswith("expected at least 2048, better 16384")
    assert told("a.txt", b"\xff\xfe\xfd\xfc\xfb") == f"--calibration {file}.txt: not UTF-8 text"
    assert told("a.csv", b"a,b") == f"--calibration {file}.csv: expected a .jsonl or a .txt file"
    where = f"--calibration {file}.jsonl: "
    assert told("a.jsonl", b"{").startswith(f"{where}{file}.jsonl:1: not valid JSON")
    expected = f"{where}expected one of the keys messages, completion, text"
    assert told("a.jsonl", b'{"a": 1}') == expected
