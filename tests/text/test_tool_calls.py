"""Tool calls found in streamed text: the same for any cutting, and nothing lost."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.text.tool_calls import ContentText, ToolCall, ToolCallParser, parse_tool_calls

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>'
PARSED = ToolCall("f", '{"a": [1, "}"]}')

PIECES = [
    CALL,
    "<tool_call>",
    "</tool_call>",
    "<tool_c",
    "all>",
    "\n",
    " ",
    "{",
    "}",
    '"',
    "\\",
    '{"name": "g", "arguments": {}}',
    '{"name": "</tool_call>", "arguments": {"<tool_call>": "\\""}}',
    '{"name": 1}',
    "text",
    "中",
]
answers = st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=10).map("".join)
examples = settings(max_examples=200, deadline=None, derandomize=True)


def stream(pieces: list[str]) -> list[ContentText | ToolCall]:
    """Events of a parser fed piece by piece, neighbouring content joined."""
    parser = ToolCallParser()
    joined: list[ContentText | ToolCall] = []
    for event in [*(e for piece in pieces for e in parser.feed(piece)), *parser.finish()]:
        last = joined[-1] if joined else None
        if isinstance(event, ContentText) and isinstance(last, ContentText):
            joined[-1] = ContentText(last.text + event.text)
        else:
            joined.append(event)
    return joined


@given(text=answers, data=st.data())
@examples
def test_any_cutting_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert stream(pieces) == stream(list(text)) == parse_tool_calls(text)


@given(text=answers)
@examples
def test_text_without_a_call_comes_out_as_it_went_in(text: str) -> None:
    events = parse_tool_calls(text)
    if not any(isinstance(event, ToolCall) for event in events):
        assert events == ([ContentText(text)] if text else [])


@given(text=answers)
@examples
def test_nothing_is_lost_but_calls_and_white_space(text: str) -> None:
    kept = "".join(e.text for e in parse_tool_calls(text) if isinstance(e, ContentText))
    position = 0
    for character in kept:
        position = text.index(character, position) + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    name=st.text(min_size=1),
    arguments=st.dictionaries(st.text(), json_values, max_size=3),
    ascii_only=st.booleans(),
    indent=st.none() | st.integers(0, 3),
)
@examples
def test_any_call_is_read_back(
    name: str, arguments: dict[str, object], ascii_only: bool, indent: int | None
) -> None:
    call = {"name": name, "arguments": arguments}
    text = json.dumps(call, ensure_ascii=ascii_only, indent=indent)
    events = parse_tool_calls(f"<tool_call>\n{text}\n</tool_call>")
    assert events == [ToolCall(name, json.dumps(arguments, ensure_ascii=False))]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("", []),
        ("plain text ", [ContentText("plain text ")]),
        (CALL, [PARSED]),
        (f"Let me look.\n{CALL}", [ContentText("Let me look."), PARSED]),
        (f"{CALL}\n{CALL}\n", [PARSED, PARSED]),
        (f"{CALL}\n\nDone.", [PARSED, ContentText("\n\nDone.")]),
        (f"{CALL}{CALL}", [PARSED, PARSED]),
        (CALL.replace("\n", ""), [PARSED]),
        (f"Use <tool_call> like this: {CALL}", [ContentText("Use <tool_call> like this:"), PARSED]),
        (f"<tool_call>{CALL}", [ContentText("<tool_call>"), PARSED]),
        (f'<tool_call>{{"name": {CALL}', [ContentText('<tool_call>{"name":'), PARSED]),
    ],
)
def test_content_and_calls_in_order(text: str, events: list[ContentText | ToolCall]) -> None:
    assert parse_tool_calls(text) == events


@pytest.mark.parametrize(
    "text",
    [
        "The tag <tool_call> opens a call.",
        "It ends with <tool_call>",
        "It ends with <tool_c",
        "a < b",
        CALL[:-1],
        CALL[:-14],
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "line\nfeed"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}} </tool_call> ',
        "<tool_call>" + '{"a":' * 100_000 + "}" * 100_000 + "</tool_call>",
    ],
)
def test_what_is_no_call_stays_content(text: str) -> None:
    assert parse_tool_calls(text) == [ContentText(text)]


def test_a_damaged_call_does_not_hide_the_next_one() -> None:
    damaged = '<tool_call>\n{"name": "f", "arguments": {"a": "x}}\n</tool_call>'
    assert parse_tool_calls(f"{damaged}\n{CALL}") == [ContentText(damaged), PARSED]


def test_content_streams_at_once_and_the_beginning_of_a_tag_waits() -> None:
    parser = ToolCallParser()
    assert parser.feed("Hello wor") == [ContentText("Hello wor")]
    assert parser.feed("ld <tool") == [ContentText("ld")]
    assert parser.feed("box>") == [ContentText(" <toolbox>")]
    assert parser.feed("\n<tool_call>") == []
    assert parser.feed(CALL[11:-1]) == []
    assert parser.feed(">") == [PARSED]
    assert parser.finish() == []


def test_a_mention_of_the_tag_does_not_hold_back_what_follows() -> None:
    parser = ToolCallParser()
    assert parser.feed("<tool_call> is") == [ContentText("<tool_call> is")]


def test_other_keys_of_a_call_are_left_out() -> None:
    text = '<tool_call>{"id": 1, "name": "f", "arguments": {"a": [1, "}"]}}</tool_call>'
    assert parse_tool_calls(text) == [PARSED]


@pytest.mark.parametrize("hostile", ["<tool_call>{", '<tool_call>{"', "<tool_call>", "<tool_c"])
def test_reading_takes_time_in_proportion_to_the_text(hostile: str) -> None:
    started = time.process_time()
    stream([hostile] * 5_000)
    assert time.process_time() - started < 5
