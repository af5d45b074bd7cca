"""`fourbee export`: the embedded model as a GGUF file that talks on, and usage told in one line."""

from __future__ import annotations

import json

import pytest

from fourbee.engine.checkpoint import open_checkpoint


def test_the_embedded_model_is_exported_and_loads(fourbee, tmp_path, embedded_model) -> None:
    target = tmp_path / "mini.gguf"
    outcome = fourbee("export", "fourbee-mini", target, "--type", "f32")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out.splitlines()[-1])
    assert document["bytes_after"] == target.stat().st_size
    assert (document["matrix_type"], document["table_type"]) == ("f32", "f32")
    assert document["tokens_as_in_llama_cpp"] is False
    [warning] = [line for line in outcome.err.splitlines() if "warning" in line]
    assert warning.startswith("warning: llama.cpp cuts text otherwise")
    ours, original = open_checkpoint(target), open_checkpoint(embedded_model)
    ours.check()
    assert ours.tokenizer.to_json() == original.tokenizer.to_json()
    assert ours.tokenizer.chat_template == original.tokenizer.chat_template
    assert ours.tokenizer.eos_token_ids == original.tokenizer.eos_token_ids
    assert ours.defaults.temperature == original.defaults.temperature == 0.0
    words = ("generate", "What is 2 + 2?", "--max-tokens", 16, "-m")
    assert fourbee(*words, target).out == fourbee(*words, embedded_model).out
    again = fourbee("export", "fourbee-mini", target)
    assert again.code == 2
    assert again.err == f"fourbee: {target}: exists; expected the name of a new file\n"


def test_four_bits_keep_the_table_in_eight(fourbee, tmp_path) -> None:
    outcome = fourbee("export", "fourbee-mini", tmp_path / "mini.gguf", "--type", "q4_0")
    assert "matrices q4_0, embedding and head q8_0, norms f32" in outcome.err
    assert fourbee("generate", "Hi", "-m", tmp_path / "mini.gguf", "--max-tokens", 2).code == 0
    # A file is a source too, and keeps the tokenizer's own rule.
    assert fourbee("export", tmp_path / "mini.gguf", tmp_path / "again.gguf").code == 0
    tokenizers = [open_checkpoint(tmp_path / f"{n}.gguf").tokenizer for n in ("mini", "again")]
    assert tokenizers[0].to_json() == tokenizers[1].to_json()


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("m.gguf", ["--type", "q5"], "--type q5: expected f32, f16, bf16, q8_0 or q4_0"),
        ("m.bin", [], "{target}: expected a file name that ends in .gguf"),
    ],
)
def test_what_cannot_be_exported_is_one_line(fourbee, tmp_path, name, words, expected) -> None:
    target = tmp_path / name
    outcome = fourbee("export", "fourbee-mini", target, *words)
    assert (outcome.code, outcome.err) == (2, f"fourbee: {expected.format(target=target)}\n")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_one_line(fourbee, tmp_path) -> None:
    outcome = fourbee("export", tmp_path / "none", tmp_path / "m.gguf")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1 and "no such folder" in outcome.err
