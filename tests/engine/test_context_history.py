"""A prompt that says what was said takes the very tokens back."""

from hypothesis import given
from hypothesis import strategies as st

from fourbee.engine.context_history import RecentContexts, rejoined

# Tokens of one to three letters; 90 and 91 are control tokens, 99 stands for nothing.
PIECES = {i: bytes(word, "ascii") for i, word in enumerate(
    ["a", "b", "ab", "ba", "aa", "bb", "aba", "bab"]
)}  # fmt: skip
CONTROL = (90, 91)
IDS = st.sampled_from([*PIECES, *CONTROL, 99])


def piece(token_id: int) -> bytes | None:
    return None if token_id in CONTROL else PIECES.get(token_id, b"")


def said(token_ids) -> list:
    flat = []
    for one in token_ids:
        flat += [one + 1000] if one in CONTROL else list(piece(one))
    return flat


def test_an_answer_that_is_cut_another_way_is_taken_back() -> None:
    known = (90, 0, 1, 0, 91)  # a b a
    assert rejoined(known, (90, 6, 91, 90, 5), piece) == (90, 0, 1, 0, 91, 90, 5)
    assert rejoined(known[:4], (90, 6, 91), piece) == (90, 0, 1, 0, 91)


def test_what_was_edited_is_taken_as_it_is_sent() -> None:
    # "ab" was said, "aa" is sent: the tokens agree up to the control token.
    assert rejoined((90, 0, 1, 91), (90, 4, 91), piece) == (90, 4, 91)
    assert rejoined((90, 0, 1, 91), (91, 2), piece) == (91, 2)
    assert rejoined((), (90, 2), piece) == (90, 2)


def test_text_that_looks_like_a_control_token_is_not_one() -> None:
    pieces = {1: b"<end>", 2: None}
    assert rejoined((2, 2), (1, 1), pieces.get) == (1, 1)


@given(st.lists(IDS, max_size=12), st.lists(IDS, min_size=1, max_size=12))
def test_it_always_says_what_the_prompt_says(known, prompt) -> None:
    joined = rejoined(known, prompt, piece)
    assert said(joined) == said(prompt)


@given(st.lists(IDS, min_size=1, max_size=12), st.lists(IDS, max_size=5))
def test_a_text_that_goes_on_keeps_all_tokens(known, more) -> None:
    assert rejoined(known, [*known, *more], piece)[: len(known)] == tuple(known)


def test_contexts_in_memory_are_the_owners_and_the_last_used() -> None:
    memory = RecentContexts()
    memory.remember("a", "me", b"", [1, 2])
    assert (memory.recall("a", "me"), memory.recall("a", "you")) == ((1, 2), None)
    for index in range(1000):
        memory.remember(f"{index}", "me", b"", [index])
    assert memory.recall("a", "me") is None and memory.recall("999", "me") == (999,)
