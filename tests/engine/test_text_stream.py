"""Text from tokens: however it is cut, the same text; stop strings never show."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.engine.request import ScoredToken
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.text_stream import TextDelta, TextStream


@dataclass(frozen=True)
class PieceTokenizer:
    """Token i is the i-th piece of bytes; the ids in `special_token_ids` are control tokens."""

    pieces: tuple[bytes, ...]
    special_token_ids: frozenset[int] = frozenset()

    def piece(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def streamed(pieces, stop=(), reason="length", special=()) -> list[TextDelta]:
    stream = TextStream(
        PieceTokenizer(tuple(pieces), frozenset(special)), SamplingParams(stop=stop)
    )
    deltas = []
    for token_id in range(len(pieces)):
        deltas.append(stream.push(ScoredToken(token_id, -1.0)))
        if stream.finish_reason:
            return deltas
    return [*deltas, stream.finish(reason)]


def texts(deltas) -> list[str]:
    return [delta.text for delta in deltas]


def tokens(deltas) -> list[tuple[int, int]]:
    return [(token.scored.token_id, token.offset) for delta in deltas for token in delta.tokens]


def test_text_that_cannot_become_a_stop_string_comes_at_once() -> None:
    deltas = streamed([b"one", b" two"], stop=["\n"])
    assert texts(deltas) == ["one", " two", ""]
    assert tokens(deltas) == [(0, 0), (1, 3)]
    assert [delta.finish_reason for delta in deltas] == [None, None, "length"]


def test_the_beginning_of_a_stop_string_is_held_until_it_is_decided() -> None:
    assert texts(streamed([b"a\n", b"b\n", b"\n", b"c"], stop=["\n\n"])) == ["a", "\nb", ""]
    assert texts(streamed([b"a<", b"/", b"b"], stop=["</s>"])) == ["a", "", "</b", ""]
    assert texts(streamed([b"a</"], stop=["</s>"])) == ["a", "</"]


def test_tokens_of_a_stop_string_are_left_out_and_those_before_it_kept() -> None:
    deltas = streamed([b"one", b" E", b"ND", b" more"], stop=["END"])
    assert texts(deltas) == ["one", " ", ""]
    assert tokens(deltas) == [(0, 0), (1, 3)]
    assert deltas[-1].finish_reason == "stop"


def test_the_stop_string_that_is_complete_first_wins_and_of_those_the_longest() -> None:
    assert "".join(texts(streamed([b"abcd"], stop=["bc", "abcd"]))) == "a"
    assert "".join(texts(streamed([b"x", b"abc"], stop=["c", "bc"]))) == "xa"


def test_half_a_character_waits_and_is_replaced_at_the_end() -> None:
    first, rest = "中".encode()[:1], "中".encode()[1:]
    deltas = streamed([b"a", first, rest, b"b", first])
    assert texts(deltas) == ["a", "", "中", "b", "", "\ufffd"]
    assert tokens(deltas) == [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3)]


def test_control_tokens_have_a_place_and_no_text() -> None:
    deltas = streamed([b"a", b"<end>", b"b"], special=[1])
    assert "".join(texts(deltas)) == "ab"
    assert tokens(deltas) == [(0, 0), (1, 1), (2, 1)]


def test_an_ended_answer_takes_no_more() -> None:
    stream = TextStream(PieceTokenizer((b"a",)), SamplingParams(stop=("a",)))
    assert stream.push(ScoredToken(0, 0.0)).finish_reason == "stop"
    with pytest.raises(AssertionError):
        stream.finish("length")


def text_before_stop(text: str, stop: list[str]) -> str:
    """Character by character: the first stop string to be complete ends the text before it."""
    for end in range(1, len(text) + 1):
        complete = [len(one) for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(complete)]
    return text


# Few letters, so that stop strings begin, overlap and fail often.
LETTERS = st.text(alphabet="ab中🙂", max_size=24)
STOPS = st.lists(st.text(alphabet="ab中🙂", min_size=1, max_size=4), max_size=4)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=LETTERS, stop=STOPS, data=st.data())
def test_any_cut_into_tokens_gives_the_same_text(text, stop, data) -> None:
    encoded = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=12))
    edges = [0, *sorted(cuts), len(encoded)]
    pieces = [encoded[a:b] for a, b in itertools.pairwise(edges)]
    deltas = streamed(pieces, stop=stop)
    expected = text_before_stop(text, stop)
    told = ""
    for delta in deltas:
        told += delta.text
        assert expected.startswith(told)  # nothing is ever taken back
    assert told == expected
    assert deltas[-1].finish_reason == ("stop" if expected != text else "length")
    # Offsets: where the text of the tokens before ends.
    for token_id, offset in tokens(deltas):
        whole = b"".join(pieces[:token_id]).decode(errors="ignore")
        assert offset == len(whole)
    ids = [token_id for token_id, _ in tokens(deltas)]
    assert ids == list(range(len(ids)))
    assert expected != text or len(ids) == len(pieces)
