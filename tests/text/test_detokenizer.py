"""Text that grows token by token never takes back a character and loses none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.text.detokenizer import IncrementalDetokenizer
from fourbee.text.tokenizer import Tokenizer

TRICKY = ["🙂", "👩‍👩‍👧", "龘", "e\u0301", "न्", "\U0010ffff", "é", " ", "\n"]
tricky_text = st.lists(st.sampled_from(TRICKY) | st.text(max_size=4)).map("".join)
examples = settings(max_examples=100, deadline=None, derandomize=True)


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_control_tokens=skip)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


@given(text=tricky_text)
@examples
def test_the_parts_of_any_text_are_whole_characters(small: Tokenizer, text: str) -> None:
    parts = stream(small, small.encode(text, control_tokens=False))
    assert "".join(parts) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts) or "\ufffd" in text


@given(text=tricky_text, cut=st.integers(min_value=0, max_value=12))
@examples
def test_a_text_cut_at_any_byte_ends_as_full_decoding_does(
    small: Tokenizer, text: str, cut: int
) -> None:
    # The first 256 ids are the bytes: any string of bytes can be spelled with them.
    byte_ids = {small.piece(i): i for i in range(256)}
    ids = [byte_ids[bytes([byte])] for byte in text.encode()[cut:]]
    assert "".join(stream(small, ids)) == small.decode(ids)
    assert "".join(stream(small, ids[: len(ids) - cut])) == small.decode(ids[: len(ids) - cut])


@given(ids=st.lists(st.integers(min_value=0, max_value=700)), skip=st.booleans())
@examples
def test_any_ids_join_to_what_decode_says(small: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(small, ids, skip)) == small.decode(ids, skip_control_tokens=skip)


@given(ids=st.lists(st.integers(min_value=0, max_value=151935)))
@examples
def test_any_ids_of_qwen_join_to_what_decode_says(qwen: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(qwen, ids)) == qwen.decode(ids)


def test_half_a_character_waits_for_its_other_half(small: Tokenizer) -> None:
    byte_ids = {small.piece(i): i for i in range(256)}
    ids = [byte_ids[bytes([byte])] for byte in "a🙂".encode()]
    assert stream(small, ids) == ["a", "", "", "", "🙂", ""]
    assert stream(small, ids[:-1]) == ["a", "", "", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_when_asked_for(small: Tokenizer, skip: bool) -> None:
    ids = small.encode("<think>a<|im_end|>", control_tokens=True)
    assert "".join(stream(small, ids, skip)) == ("<think>a" if skip else "<think>a<|im_end|>")
