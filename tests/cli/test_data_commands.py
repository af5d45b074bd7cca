"""`fourbee data check` and `fourbee tokens --conversation`: samples as training reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TALK = {"messages": [{"role": "user", "content": "say red"},
                     {"role": "assistant", "content": "red"}]}  # fmt: skip
PAIR = {"prompt": TALK["messages"][:1], "chosen": "red", "rejected": "blue, or green"}


@pytest.fixture
def write(tmp_path):
    def written(name: str, *samples: object) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(one) for one in samples) + "\n")
        return path

    return written


def test_check_counts_forms_lengths_learned_tokens_and_duplicates(fourbee, write):
    path = write("a.jsonl", TALK, {"text": "one two"}, dict(reversed(TALK.items())), TALK, PAIR)
    outcome = fourbee("data", "check", path)
    assert outcome.code == 0
    name, forms, tokens, lengths, *preview = outcome.out.splitlines()
    assert name == str(path)
    assert forms == "5 samples: 3 conversation, 1 text, 1 pair; 2 duplicates, 0 bad"
    total, learned = (int(part.split()[0]) for part in tokens.split(", "))
    assert tokens == f"{total} tokens, {learned} learned ({learned / total:.1%})"
    assert lengths.startswith("tokens of a sample: min ")
    # What is learned of the first sample stands out.
    assert "⟦red<|im_end|>⟧" in "".join(preview)
    least, most = int(lengths.split()[5].strip(",")), int(lengths.split()[-1])
    assert 0 < least < most < total


def test_check_shows_both_sides_of_a_pair_and_reads_other_formats(fourbee, write, embedded_model):
    outcome = fourbee("data", "check", write("a.jsonl", PAIR), "--tokenizer", embedded_model)
    shown = outcome.out.replace("\n", "")
    assert "⟦red<|im_end|>⟧" in shown
    assert "⟦blue, or green<|im_end|>⟧" in shown
    question = {"question": "1+2?", "answer": "3\n#### 3"}
    outcome = fourbee("data", "check", write("b.jsonl", question), "--format", "gsm8k")
    assert "1 samples: 1 conversation; 0 duplicates, 0 bad" in outcome.out


def test_check_ends_at_the_first_bad_line_or_counts_them(fourbee, write):
    path = write("a.jsonl", TALK, {"text": ""}, {"txt": "a"})
    outcome = fourbee("data", "check", path)
    assert outcome.code == 2
    assert outcome.err == (
        f"fourbee: {path}:2: nothing to learn: no assistant turn or completion\n"
    )
    assert "0 duplicates, 2 bad" in fourbee("data", "check", path, "--skip-bad").out
    outcome = fourbee("data", "check", path, "--format", "alpca")
    assert (outcome.code, outcome.err.endswith("(did you mean 'alpaca'?)\n")) == (2, True)
    missing = path.with_name("missing.jsonl")
    outcome = fourbee("data", "check", missing)
    assert (outcome.code, outcome.err) == (2, f"fourbee: data {missing}: no such file\n")


def test_tokens_of_a_pair_are_those_of_both_sides(fourbee, write):
    outcome = fourbee("tokens", "--conversation", write("a.jsonl", TALK, PAIR), "--line", "2")
    assert outcome.code == 0
    assert outcome.out.count(" learned") == 2
    assert "⟦red<|im_end|>⟧" in outcome.out
    assert "⟦blue, or green<|im_end|>⟧" in outcome.out


def test_tokens_of_every_form_show_what_its_stage_learns(fourbee, write):
    prompt = TALK["messages"][:1]
    path = write(
        "a.jsonl",
        {"prompt": prompt, "completion": "red", "label": False},
        {"prompt": prompt, "answer": "red"},
        {"question": "1+2?", "answer": "3\n#### 4"},
        {"text": ""},
    )

    def shown(line: int, *words: str) -> str:
        outcome = fourbee("tokens", "--conversation", path, "--line", str(line), *words)
        assert outcome.code == 0
        return outcome.out

    assert "⟦red<|im_end|>⟧" in shown(1)
    assert "say red" in shown(2)
    assert " learned" not in shown(2)
    assert "#### 4<|im_end|>⟧" in shown(3, "--format", "gsm8k")
    outcome = fourbee("tokens", "--conversation", path, "--line", "4")
    assert outcome.code != 0
    assert outcome.err == (
        f"fourbee: {path}:4: nothing to learn: no assistant turn or completion\n"
    )
