"""Training a byte-level BPE tokenizer: what is isolated, what is guaranteed, what is saved."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from fourbee.foundation.errors import UsageError
from fourbee.text.bpe import QWEN_CONTROL_TOKENS, save_tokenizer, train_bpe
from fourbee.text.tokenizer import Tokenizer

HAN = "的一是不了人我在有他这中大来上国"
MARKS = "。，、“”（）！？…—《》·"
SENTENCES = [
    'The token "token" is a token; the reader reads the model.',
    "我们在中国。龘龘龘龘龘龘龘龘",
    "Привет мир, мир и мир",
] * 4
TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def backend() -> Backend:
    return train_bpe(SENTENCES, 500, guaranteed=HAN + MARKS)


def one_token(backend: Backend, character: str) -> bool:
    return [backend.decode([i]) for i in backend.encode(character).ids] == [character]


def test_the_vocabulary_fits_and_ends_with_the_control_tokens_in_order(backend: Backend) -> None:
    size = backend.get_vocab_size()
    assert size <= 500
    first = size - len(QWEN_CONTROL_TOKENS)
    ids = [backend.token_to_id(token.text) for token in QWEN_CONTROL_TOKENS]
    assert ids == list(range(first, size))


def test_ids_have_no_gaps(backend: Backend) -> None:
    assert sorted(backend.get_vocab().values()) == list(range(backend.get_vocab_size()))


@pytest.mark.parametrize("around", ["{}", "{}{}", "a{}b", " {} ", '"{}"', "1{}2", "龘{}中"])
def test_a_guaranteed_character_is_one_token_wherever_it_stands(
    backend: Backend, around: str
) -> None:
    for character in HAN + MARKS:
        text = around.replace("{}", character)
        tokens = [backend.decode([i]) for i in backend.encode(text).ids]
        assert tokens.count(character) == text.count(character), text


def test_a_frequent_character_becomes_a_token_without_a_guarantee(backend: Backend) -> None:
    assert one_token(backend, "龘")


def test_every_learned_token_can_come_out(backend: Backend) -> None:
    model = json.loads(backend.to_str())["model"]
    for left, right in model["merges"]:
        pieces = [piece.value for piece in backend.model.tokenize(left + right)]
        assert pieces == [left + right]


@pytest.mark.parametrize("word", ["token", "unseen", "reader", "мир", "naïve", "forêt"])
@pytest.mark.parametrize("before", ["", " ", '"', "\n", "(", "1", "中", "  ", ".", "❤️"])
def test_a_word_has_the_same_tokens_wherever_it_begins(
    backend: Backend, word: str, before: str
) -> None:
    alone = backend.encode(word).ids
    text = backend.encode(f"{before}{word}, 1").ids
    start = len(backend.encode(before).ids)
    assert text[start : start + len(alone)] == alone


def test_spaces_digits_and_marks_stay_single(backend: Backend) -> None:
    tokens = [backend.decode([i]) for i in backend.encode('  12 "a" --\n\n我我').ids]
    assert tokens == [*'  12 "a" --\n\n我我']


@given(text=st.text())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decoding_gives_back_every_text(backend: Backend, text: str) -> None:
    assert backend.decode(backend.encode(text).ids, skip_special_tokens=False) == text


def test_training_twice_gives_the_same_tokenizer() -> None:
    twice = [train_bpe(SENTENCES, 400, guaranteed=HAN).to_str() for _ in range(2)]
    assert twice[0] == twice[1]


def test_a_tokenizer_of_bytes_and_control_tokens_needs_no_text() -> None:
    smallest = 256 + len(QWEN_CONTROL_TOKENS)
    assert train_bpe([], smallest).get_vocab_size() == smallest


def test_too_small_a_vocabulary_says_what_is_needed() -> None:
    with pytest.raises(UsageError) as error:
        train_bpe(SENTENCES, 260, guaranteed="我")
    assert str(error.value) == (
        "vocab_size 260 is too small: 256 bytes, 2 tokens for the guaranteed characters "
        "and 9 control tokens need 267"
    )


def test_a_letter_cannot_be_guaranteed() -> None:
    with pytest.raises(UsageError, match="guaranteed holds 'é', a letter that merges into words"):
        train_bpe(SENTENCES, 500, guaranteed="é")
    with pytest.raises(UsageError, match="guaranteed holds '我们'; give single characters"):
        train_bpe(SENTENCES, 500, guaranteed=["我们"])


def test_a_saved_tokenizer_loads_the_same(backend: Backend, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, backend, TEMPLATE, context_length=2048)
    loaded = Tokenizer.load(tmp_path)
    text = "The <think>reader</think> 我们<|im_end|>"
    assert loaded.encode(text, control_tokens=True) == backend.encode(text).ids
    assert loaded.eos_token_ids == (loaded.token_id("<|im_end|>"),)
    assert loaded.named_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert loaded.chat_template == TEMPLATE


def test_saving_refuses_an_unknown_end_of_turn(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="end_of_turn '</s>' is not a token of this tokenizer"):
        save_tokenizer(tmp_path, backend, TEMPLATE, end_of_turn="</s>")


def test_transformers_reads_a_saved_tokenizer(backend: Backend, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path, backend, TEMPLATE, context_length=2048)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = 'The  "reader"\n\n我们 é<|im_end|> <think>a</think>'
    assert theirs(text)["input_ids"] == backend.encode(text).ids
    assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert theirs.model_max_length == 2048
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text.replace(
        "<|im_end|>", ""
    )
