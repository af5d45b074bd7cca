"""Token ids <-> text, against published vectors, and what plain text can never become."""

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.text.bpe import train_bpe
from fourbee.text.tokenizer import Tokenizer

CONTROL_LIKE = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</tool_call>"]
FRAGMENTS = ["<", "|", ">", "<|", "|>", "im_start", "im_end", "<think", "\u0338", "user\n", " "]

# Text in which control strings, and what looks like the half of one, are frequent.
hostile_text = st.lists(st.sampled_from(CONTROL_LIKE + FRAGMENTS) | st.text(max_size=3)).map(
    "".join
)
examples = settings(max_examples=100, deadline=None, derandomize=True)


def test_the_43_vectors_of_llama_cpp(qwen: Tokenizer, test_data: Path) -> None:
    separator = "\n__ggml_vocab_test__\n"
    folder = test_data / "tokenizer"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode().split(separator)
    lines = (folder / "ggml-vocab-qwen2.gguf.out").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 43
    for text, line in zip(texts, lines, strict=False):
        assert qwen.encode(text, control_tokens=False) == [int(i) for i in line.split()], text


def test_the_591_vectors_of_the_reference_library(qwen: Tokenizer, test_data: Path) -> None:
    with gzip.open(
        test_data / "tokenizer" / "hf_tokenizers_vectors.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        vectors = [json.loads(line) for line in lines]
    assert len(vectors) == 591
    for vector in vectors:
        assert qwen.encode(vector["text"], control_tokens=True) == vector["ids"], vector["name"]
        assert (qwen.decode(vector["ids"]) == vector["text"]) == vector["decoded_equal"]


def test_the_published_facts_of_qwen(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151669
    assert qwen.eos_token_ids == (151645, 151643)
    assert len(qwen.control_token_ids) == 26
    assert len(qwen.special_token_ids) == 14
    assert qwen.token_id("<|im_start|>") == 151644
    assert qwen.chat_template is not None
    assert "tool_call" in qwen.chat_template


@given(text=hostile_text)
@examples
def test_plain_text_never_becomes_a_control_token(small: Tokenizer, text: str) -> None:
    ids = small.encode(text, control_tokens=False)
    assert not small.control_token_ids.intersection(ids)
    assert small.decode(ids) == text


@given(text=hostile_text)
@examples
def test_plain_text_never_becomes_a_control_token_of_qwen(qwen: Tokenizer, text: str) -> None:
    ids = qwen.encode(text, control_tokens=False)
    assert not qwen.control_token_ids.intersection(ids)
    assert qwen.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", ["Hello world", "", "中文 🙂", "a < b", "{}<tool>"])
def test_text_without_control_strings_is_encoded_the_same_either_way(
    small: Tokenizer, text: str
) -> None:
    assert small.encode(text, control_tokens=False) == small.encode(text, control_tokens=True)


def test_control_strings_become_their_tokens_when_asked_for(small: Tokenizer) -> None:
    for text, token_id in small.control_tokens.items():
        assert small.encode(text, control_tokens=True) == [token_id]
        assert small.token_id(text) == token_id


@given(ids=st.lists(st.integers(min_value=0, max_value=610)))
@examples
def test_decoding_equals_the_library_for_any_ids(small: Tokenizer, ids: list[int]) -> None:
    known = [i for i in ids if i < small.vocab_size]
    backend = small._backend  # pyright: ignore[reportPrivateUsage]
    assert small.decode(ids) == backend.decode(known, skip_special_tokens=False)
    assert small.decode(ids, skip_control_tokens=True) == backend.decode(known)


@given(ids=st.lists(st.integers(min_value=0, max_value=151935)))
@examples
def test_decoding_equals_the_library_for_any_ids_of_qwen(qwen: Tokenizer, ids: list[int]) -> None:
    known = [i for i in ids if i < qwen.vocab_size]
    backend = qwen._backend  # pyright: ignore[reportPrivateUsage]
    assert qwen.decode(ids) == backend.decode(known, skip_special_tokens=False)


def test_skipping_control_tokens_keeps_markup(small: Tokenizer) -> None:
    ids = small.encode("<think>hm</think>yes<|im_end|>", control_tokens=True)
    assert small.decode(ids, skip_control_tokens=True) == "<think>hm</think>yes"
    assert small.decode(ids) == "<think>hm</think>yes<|im_end|>"


def test_every_byte_has_a_piece_and_padding_rows_have_none(small: Tokenizer) -> None:
    pieces = [small.piece(i) for i in range(small.vocab_size)]
    assert {piece for piece in pieces if len(piece) == 1} == {bytes([b]) for b in range(256)}
    assert small.piece(small.token_id("<think>")) == b"<think>"
    assert small.piece(small.vocab_size) == small.piece(-1) == b""


def test_an_unknown_token_is_an_error(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match="token '<none>' is not in the vocabulary"):
        small.token_id("<none>")


def test_half_a_surrogate_pair_is_an_error(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match="text holds half of a surrogate pair"):
        small.encode("a\ud800", control_tokens=False)


def test_a_folder_without_tokenizer_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as error:
        Tokenizer.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: tokenizer.json is missing; "
        "copy it from the checkpoint that the weights come from"
    )


@pytest.fixture
def checkpoint(tmp_path: Path, small: Tokenizer) -> Path:
    small._backend.save(str(tmp_path / "tokenizer.json"))  # pyright: ignore[reportPrivateUsage]
    return tmp_path


def test_a_lone_tokenizer_file_is_enough(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    assert (tokenizer.chat_template, tokenizer.eos_token_ids) == (None, ())


def test_the_template_file_comes_before_the_config(checkpoint: Path) -> None:
    config = checkpoint / "tokenizer_config.json"
    config.write_text('{"chat_template": "from config"}', encoding="utf-8")
    assert Tokenizer.load(checkpoint).chat_template == "from config"
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": "of several"}]
    config.write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    assert Tokenizer.load(checkpoint).chat_template == "of several"
    (checkpoint / "chat_template.jinja").write_text("from file", encoding="utf-8")
    assert Tokenizer.load(checkpoint).chat_template == "from file"


def test_end_tokens_come_from_the_generation_config_first(checkpoint: Path) -> None:
    config = checkpoint / "tokenizer_config.json"
    config.write_text('{"eos_token": {"content": "<|im_end|>"}}', encoding="utf-8")
    loaded = Tokenizer.load(checkpoint)
    assert loaded.eos_token_ids == (loaded.token_id("<|im_end|>"),)
    generation = checkpoint / "generation_config.json"
    generation.write_text('{"eos_token_id": [7, 8]}', encoding="utf-8")
    assert Tokenizer.load(checkpoint).eos_token_ids == (7, 8)
    generation.write_text('{"eos_token_id": 9}', encoding="utf-8")
    assert Tokenizer.load(checkpoint).eos_token_ids == (9,)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer: "),
        # The prefix is longer than the merge's second part: the library panics.
        (
            "tokenizer.json",
            '{"added_tokens": [], "model": {"type": "BPE", "continuing_subword_prefix": "..", '
            '"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}',
            "tokenizer.json: not a tokenizer: ",
        ),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON: "),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
        (
            "generation_config.json",
            '{"eos_token_id": "x"}',
            "generation_config.json: eos_token_id is 'x'; expected an id or a list of ids",
        ),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    checkpoint: Path, file: str, content: str, message: str
) -> None:
    (checkpoint / file).write_text(content, encoding="utf-8")
    with pytest.raises(ModelFileError) as error:
        Tokenizer.load(checkpoint)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelFileError, match="the decoder must be ByteLevel"):
        Tokenizer(Backend(BPE()))


def test_an_added_token_that_swallows_spaces_is_refused() -> None:
    backend = train_bpe(["text"], 300)
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])  # pyright: ignore[reportUnknownMemberType]
    with pytest.raises(ModelFileError, match="added token '<mask>' uses lstrip"):
        Tokenizer(backend)


def test_an_added_token_that_text_could_forge_is_refused() -> None:
    backend = train_bpe(["text text text text"], 300)
    backend.add_special_tokens(["text"])  # pyright: ignore[reportUnknownMemberType]
    with pytest.raises(ModelFileError, match="text could forge it"):
        Tokenizer(backend)
