"""A tokenizer out of a GGUF file's metadata is the one out of tokenizer.json, to the letter."""

import gzip
import json

import numpy as np
import pytest

from fourbee.foundation.errors import ModelFileError
from fourbee.text.gguf_vocabulary import cuts_like_qwen, gguf_tokenizer, vocabulary_metadata

TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture
def metadata(small, gguf_vocabulary) -> dict:
    return gguf_vocabulary(small._backend, small.vocab_size + 7) | {
        "tokenizer.chat_template": TEMPLATE
    }


def refusal(metadata: dict) -> str:
    with pytest.raises(ModelFileError) as error:
        gguf_tokenizer(metadata, "m.gguf")
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_vocabulary_and_the_control_tokens_are_kept(small, metadata) -> None:
    ours = gguf_tokenizer(metadata, "m.gguf")
    assert ours.vocab_size == small.vocab_size
    assert ours.control_tokens == small.control_tokens
    assert ours.special_token_ids == small.special_token_ids
    assert ours.chat_template == TEMPLATE
    assert ours.named_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    ends = ["<|im_end|>", "<|endoftext|>"]
    assert ours.eos_token_ids == tuple(small.token_id(token) for token in ends)
    for index in range(small.vocab_size + 7):
        assert ours.piece(index) == small.piece(index)
    text = "<think>the token</think><|im_end|>"
    ids = ours.encode(text, control_tokens=True)
    assert ours.decode(ids) == text
    assert not ours.control_token_ids.intersection(ours.encode(text, control_tokens=False))


def test_a_file_that_names_no_end_has_qwens_ends_and_no_template(small, metadata) -> None:
    del metadata["tokenizer.ggml.eos_token_id"]
    del metadata["tokenizer.chat_template"]
    metadata["tokenizer.ggml.bos_token_id"] = 0
    ours = gguf_tokenizer(metadata, "m.gguf")
    assert ours.eos_token_ids == (small.token_id("<|im_end|>"), small.token_id("<|endoftext|>"))
    assert ours.named_tokens["bos_token"] == metadata["tokenizer.ggml.tokens"][0]
    assert ours.chat_template is None


def test_qwens_own_tokenizer_comes_out_equal(qwen, gguf_vocabulary, test_data) -> None:
    backend = qwen._backend
    ours = gguf_tokenizer(gguf_vocabulary(backend, 151936), "m.gguf")
    assert json.loads(ours._backend.to_str()) == json.loads(backend.to_str())
    assert ours.vocab_size == 151669
    assert ours.eos_token_ids == qwen.eos_token_ids
    folder = test_data / "tokenizer"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode()
    lines = (folder / "ggml-vocab-qwen2.gguf.out").read_text(encoding="utf-8").splitlines()
    for text, line in zip(texts.split("\n__ggml_vocab_test__\n"), lines, strict=False):
        assert ours.encode(text, control_tokens=False) == [int(i) for i in line.split()], text
    packed = (folder / "hf_tokenizers_vectors.jsonl.gz").read_bytes()
    for vector in map(json.loads, gzip.decompress(packed).decode().splitlines()):
        assert ours.encode(vector["text"], control_tokens=True) == vector["ids"], vector["name"]


def changed(array: np.ndarray, index: int, value: int) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", "llama", "model is 'llama': expected 'gpt2', as Qwen3's files have it"),
        ("model", None, "model is no string: expected 'gpt2', as Qwen3's files have it"),
        ("pre", "llama-bpe", "pre is 'llama-bpe': expected 'qwen2', as Qwen3's files have it"),
        ("tokens", None, "tokens is no array of strings"),
        ("tokens", np.zeros(3), "tokens is no array of strings"),
        ("token_type", None, "token_type is no array of whole numbers"),
        ("token_type", np.zeros(3), "token_type is no array of whole numbers"),
        (
            "token_type",
            np.ones(3, dtype=np.int32),
            "token_type has 3 entries, expected {count}, one a token",
        ),
        (
            "token_type",
            lambda old: changed(old, 5, 6),
            "token_type has 6 for token 5: expected 1 (normal), 3 (control), 4 (user-defined) or "
            "5 (unused)",
        ),
        ("tokens", lambda old: [*old[:-1], old[0]], "tokens has '!' twice"),
        (
            "tokens",
            lambda old: ["中" * 50, *old[1:]],
            f"tokens has '{'中' * 40}...' at 0: expected letters that stand for bytes",
        ),
        (
            "tokens",
            lambda old: ["!!!!!", *old[1:]],
            "tokens has no token for byte 33: expected all 256",
        ),
        (
            "token_type",
            lambda old: changed(old, 300, 3),
            "tokens has {token} at 300: expected control tokens side by side after all others",
        ),
        ("merges", None, "merges is no array of strings"),
        ("merges", ["! x"], "merges has '! x' at 0: expected two tokens that make a third"),
        ("merges", ["!"], "merges has '!' at 0: expected two tokens that make a third"),
        ("eos_token_id", 10**6, "eos_token_id is no token id: expected from 0 to {last}"),
        ("eos_token_id", "x", "eos_token_id is no token id: expected from 0 to {last}"),
        (
            "add_bos_token",
            True,
            "add_bos_token is not false: expected text with nothing added, as in Qwen3",
        ),
    ],
)
def test_what_is_not_qwens_vocabulary_is_named(metadata, key, value, expected) -> None:
    count = len(metadata["tokenizer.ggml.tokens"])
    token = repr(metadata["tokenizer.ggml.tokens"][300])
    name = f"tokenizer.ggml.{key}"
    metadata[name] = value(metadata[name]) if callable(value) else value
    expected = expected.format(count=count, last=count - 1, token=token)
    if key == "token_type" and "side by side" in expected:
        metadata["tokenizer.ggml.merges"] = []
    assert refusal(metadata) == f"m.gguf: tokenizer.ggml.{expected}"


def test_a_template_that_is_no_text_is_refused(metadata) -> None:
    metadata["tokenizer.chat_template"] = ["x"]
    assert refusal(metadata) == "m.gguf: tokenizer.chat_template: expected a string"


def test_any_damage_to_the_vocabulary_is_one_error_or_a_tokenizer(metadata) -> None:
    random = np.random.default_rng(1)
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    for _ in range(60):
        given = dict(metadata)
        given["tokenizer.ggml.tokens"] = list(tokens)
        given["tokenizer.ggml.merges"] = list(merges)
        given["tokenizer.ggml.tokens"][random.integers(len(tokens))] = str(
            random.choice(["", " ", "\n", "a b", "\0", "<|im_end|>", "ĠĠĠ", "𝒳"])
        )
        given["tokenizer.ggml.merges"][random.integers(len(merges))] = str(
            random.choice([*merges[:20], "", " ", "a", "a  b", "! !"])
        )
        given["tokenizer.ggml.token_type"] = changed(
            given["tokenizer.ggml.token_type"], random.integers(len(tokens)), random.integers(0, 8)
        )
        try:
            gguf_tokenizer(given, "m.gguf").encode("the token <think> 中", control_tokens=True)
        except ModelFileError as error:
            assert str(error).startswith("m.gguf: ")
            assert "\n" not in str(error)


def test_a_tokenizer_that_cuts_otherwise_is_kept_whole(small) -> None:
    metadata = vocabulary_metadata(small, small.vocab_size + 7)
    assert not cuts_like_qwen(small)
    ours = gguf_tokenizer(metadata, "m.gguf")
    assert ours.to_json() == small.to_json()
    assert ours.chat_template == small.chat_template
    assert ours.eos_token_ids[0] == small.eos_token_ids[0]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    assert kinds[-8:] == [4, *[5] * 7]
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{small.vocab_size + 6}]"
    metadata["tokenizer.ggml.tokens"][300] = "other"
    assert "tokenizer.huggingface.json has" in refusal(metadata)
    metadata["tokenizer.huggingface.json"] = "{"
    assert "tokenizer.huggingface.json: not a tokenizer" in refusal(metadata)
    metadata["tokenizer.huggingface.json"] = 3
    assert refusal(metadata).endswith("tokenizer.huggingface.json: expected a string")


def test_a_model_needs_a_row_for_every_token(small) -> None:
    rows = small.vocab_size - 1
    with pytest.raises(ModelFileError, match=f"expected less than the model's {rows} rows"):
        vocabulary_metadata(small, rows)


def test_qwens_own_tokenizer_goes_there_and_back(qwen, gguf_vocabulary) -> None:
    assert cuts_like_qwen(qwen)
    metadata = vocabulary_metadata(qwen, 151936)
    assert "tokenizer.huggingface.json" not in metadata
    expected = gguf_vocabulary(qwen._backend, 151936)
    for key, value in expected.items():
        assert np.array_equal(metadata[key], value), key
    assert metadata["tokenizer.ggml.bos_token_id"] == qwen.token_id("<|endoftext|>")
    ours = gguf_tokenizer(metadata, "m.gguf")
    assert json.loads(ours.to_json()) == json.loads(qwen.to_json())
    assert ours.chat_template == qwen.chat_template
    assert set(ours.eos_token_ids) == set(qwen.eos_token_ids)
