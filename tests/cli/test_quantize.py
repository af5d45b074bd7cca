"""`fourbee quantize`: the embedded model in four bits talks on, and usage is told in one line."""

from __future__ import annotations

import json

import pytest

from fourbee.engine.checkpoint import open_checkpoint


def test_the_embedded_model_is_packed_and_loads(fourbee, tmp_path) -> None:
    target = tmp_path / "packed"
    outcome = fourbee("quantize", "fourbee-mini", target)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out.splitlines()[-1])
    assert (
        4.25 < document["bits_per_weight"] < 4.9
        and document["tables"] == "int8"
        and document["rotated"] is True
    )
    assert document["bytes_after"] < document["bytes_before"] * 0.61
    assert 0.05 < document["mean_error"] < 0.1
    assert "4.85 bits a weight" in outcome.err
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
    ],
)
def test_what_cannot_be_packed_is_one_line(fourbee, tmp_path, words, expected) -> None:
    outcome = fourbee("quantize", "fourbee-mini", tmp_path / "packed", *words)
    assert (outcome.code, outcome.err) == (2, f"fourbee: {expected}\n")
