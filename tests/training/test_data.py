"""Training data: what is learned, what is packed, what is kept, and one line for what is wrong."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fourbee.foundation.errors import TrainingError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training import data
from fourbee.training.data import (
    Corpus,
    document_order,
    encode_sample,
    load_corpus,
    make_pack,
    plan_updates,
    read_lines,
    split_pack,
    tokenise,
)

from .conftest import conversation

CALL = {"function": {"name": "calc", "arguments": {"e": "1+2"}}}
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}
LONG_CHAT = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "say red"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "one and two?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "three"},
        {"role": "assistant", "content": "three<|im_end|>house"},
    ],
}


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


def encoded(sample, tokenizer) -> tuple[list[int], list[bool]]:
    return encode_sample(sample, tokenizer, ChatFormat(tokenizer))


def spans(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> list[str]:
    """The texts of the runs of learned tokens."""
    runs: list[list[int]] = []
    for index, (token_id, learned) in enumerate(zip(ids, mask, strict=True)):
        if learned and not (index and mask[index - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token_id)
    return [tokenizer.decode(run) for run in runs]


def error_of(call, *arguments) -> str:
    with pytest.raises(TrainingError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is learned


def test_only_the_assistants_words_calls_and_end_tokens_are_learned(tokenizer):
    ids, mask = encoded(LONG_CHAT, tokenizer)
    call = '<tool_call>\n{"name": "calc", "arguments": {"e": "1+2"}}\n</tool_call>'
    assert spans(ids, mask, tokenizer) == [
        "red<|im_end|>", f"{call}<|im_end|>", "three<|im_end|>house<|im_end|>",
    ]  # fmt: skip
    end = tokenizer.token_id("<|im_end|>")
    learned = [token_id for token_id, one in zip(ids, mask, strict=True) if one]
    assert learned.count(end) == 3  # the one inside of the words is text
    assert tokenizer.token_id("<|im_start|>") not in learned


def test_a_raw_text_learns_its_continuation_or_all_of_itself(tokenizer):
    ids, mask = encoded({"prompt": "one two", "completion": " three"}, tokenizer)
    assert spans(ids, mask, tokenizer) == [" three<|endoftext|>"]
    assert tokenizer.decode(ids) == "one two three<|endoftext|>"
    ids, mask = encoded({"text": "one two"}, tokenizer)
    assert spans(ids, mask, tokenizer) == ["one two<|endoftext|>"]
    ids, mask = encoded({"completion": "three"}, tokenizer)
    assert all(mask)


def test_with_the_loss_on_all_every_token_is_learned_but_never_the_first(tokenizer):
    lines = [("a:1", LONG_CHAT), ("a:2", {"text": "red"})]
    corpus = tokenise(iter(lines), tokenizer, "all")
    assert corpus.learned.all()
    pack = make_pack(corpus, [0, 1])
    firsts = np.array([0, len(encoded(LONG_CHAT, tokenizer)[0])])
    assert not pack.learned[firsts].any()
    assert pack.num_targets == len(pack.ids) - 2


# ---- one line for what is wrong


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops", "not valid JSON: Expecting property name enclosed in double quotes"),
        (b"", "not valid JSON: Expecting value"),
        (b"[1]", "expected a JSON object"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (b'{"txt": "a"}', "expected one of the keys messages, completion, text"),
        (b'{"text": ""}', "nothing to learn: no assistant turn or completion"),
        (b'{"messages": []}', "messages: expected a list of at least one message"),
        (
            b'{"messages": [{"role": "bot", "content": "a"}]}',
            "messages[0].role is 'bot'; expected one of system, user, assistant, tool",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "messages: 0 assistant turns, but the chat template writes 0; training needs at least "
            "one, and each under its header",
        ),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, tokenizer, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(conversation(0)).encode() + b"\n" + line + b"\n")
    found = error_of(tokenise, read_lines([path]), tokenizer, "all")
    assert found == f"{path}:2: {reason}"


def test_missing_and_empty_data_are_errors(tmp_path, tokenizer, tokenizer_folder):
    missing, empty = tmp_path / "missing.jsonl", tmp_path / "empty.jsonl"
    empty.write_text("")
    assert error_of(lambda: list(read_lines([missing]))) == (
        f"data {missing}: no such file (fourbee data generate writes them)"
    )
    assert error_of(tokenise, read_lines([empty]), tokenizer, "all") == (
        "the training data holds no samples"
    )
    load = (load_corpus, [missing], tokenizer_folder, "all", tmp_path / "cache")
    assert error_of(*load) == f"{missing}: no such file"


def test_a_text_may_hold_any_line_mark_but_the_line_feed(tmp_path):
    path = tmp_path / "data.jsonl"
    texts = [f"one{mark}two" for mark in "\u2028\u2029\x85\x1c"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert [sample["text"] for _, sample in read_lines([path])] == texts


# ---- the cache


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A tokenizer folder that a test may change."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "own"))


def same(one: Corpus, other: Corpus) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("ids", "learned", "offsets")
    )


def test_a_second_load_reads_the_cache_and_is_equal(data_file, folder, tmp_path, monkeypatch):
    counted: list[int] = []
    cache = tmp_path / "cache"
    first = load_corpus([data_file], folder, "assistant", cache, counted.append)
    assert len(first) == len(counted) == 60
    monkeypatch.setattr(data.Tokenizer, "load", lambda _: pytest.fail("tokenised again"))
    assert same(first, load_corpus([data_file], folder, "assistant", cache))
    assert [path.suffixes for path in cache.iterdir()] == [[".npz"]]


def test_other_data_loss_tokenizer_or_template_are_tokenised_anew(data_file, folder, tmp_path):
    cache = tmp_path / "cache"

    def load(loss="all") -> Corpus:
        return load_corpus([data_file], folder, loss, cache)

    first = load()
    assert not np.array_equal(load("assistant").learned, first.learned)
    with data_file.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert len(load()) == len(first) + 1
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("opening ~ 'assistant", "opening ~ ' assistant"))
    assert len(load().ids) > len(first.ids) + 60
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_start|>assistant")
    with pytest.raises(TrainingError):
        load("assistant")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TrainingError):
        load("assistant")


# ---- updates and packs


def test_a_plan_holds_every_document_once_in_order_within_the_budget():
    for seed in range(60):
        rng = random.Random(seed)
        lengths = np.array([rng.randint(1, 40) for _ in range(rng.randint(1, 50))])
        order = document_order(len(lengths), 0, seed, shuffle=bool(seed % 2))
        budget = rng.randint(1, 90)
        updates = plan_updates(lengths, order, budget)
        assert [d for update in updates for d in update] == list(order)
        sizes = [int(lengths[update].sum()) for update in updates]
        for update, size in zip(updates, sizes, strict=True):
            assert size <= budget or len(update) == 1
        # As full as order allows: the next document would not have fitted.
        for size, following in zip(sizes, updates[1:], strict=False):
            assert size + lengths[following[0]] > budget


def test_the_order_is_a_permutation_of_its_arguments_alone():
    first = document_order(100, 0, seed=3, shuffle=True)
    assert sorted(first) == list(range(100))
    assert np.array_equal(first, document_order(100, 0, seed=3, shuffle=True))
    assert not np.array_equal(first, document_order(100, 1, seed=3, shuffle=True))
    assert not np.array_equal(first, document_order(100, 0, seed=4, shuffle=True))
    assert list(document_order(5, 9, seed=3, shuffle=False)) == [0, 1, 2, 3, 4]


def test_packs_hold_whole_documents_side_by_side(data_file, tokenizer, tmp_path):
    corpus = tokenise(read_lines([data_file]), tokenizer, "assistant")
    documents = np.array([7, 3, 59, 0, 21])
    pack = make_pack(corpus, documents)
    start = 0
    for index, length in zip(documents, pack.lengths, strict=True):
        span = slice(start, start + length)
        ids, mask = encoded(conversation(int(index)), tokenizer)
        assert pack.ids[span].tolist() == ids
        assert pack.learned[span].tolist() == mask
        assert pack.positions[span].tolist() == list(range(length))
        start += length
    assert start == len(pack.ids)
    parts = split_pack(corpus, documents, tokens_per_pack=90)
    assert len(parts) > 1
    assert np.array_equal(np.concatenate([part.ids for part in parts]), pack.ids)
    assert sum(part.num_targets for part in parts) == pack.num_targets
    assert all(len(part.ids) <= 90 or len(part.lengths) == 1 for part in parts)


def test_a_document_longer_than_the_budget_is_kept_whole(tokenizer):
    lines = [(f"a:{i}", {"text": "house " * count}) for i, count in enumerate((2, 50, 2))]
    corpus = tokenise(iter(lines), tokenizer, "all")
    packs = split_pack(corpus, np.arange(3), tokens_per_pack=10)
    assert [len(pack.lengths) for pack in packs] == [1, 1, 1]
    assert [len(pack.ids) for pack in packs] == corpus.lengths.tolist()
