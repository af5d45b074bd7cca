"""Tool calls in an assistant's text, found while it streams in.

A call is `<tool_call>`, a JSON object with a string "name" and an object "arguments", and
`</tool_call>`, with white space between them as one likes; other keys are left out. Everything
else is content: text that mentions the tags, JSON that is damaged or cut off. Nothing is lost and
nothing is guessed, and how the text was cut into pieces changes nothing. White space before a
call, between calls and after them belongs to the form (the chat template writes it), not to the
content.

It checks neither that a tool of this name exists nor that the arguments fit its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, cast

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"

WHITE_SPACE = " \t\r\n"

# In a string: what is plain, and what needs a look. Outside: what JSON may hold beside strings.
STRING_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
OUTSIDE_PLAIN = re.compile(r"[\s\w.,:+-]*")
BEFORE_OBJECT = re.compile(rf"[{WHITE_SPACE}]*")


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text for people to read, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A completed call; `arguments` is the text of a JSON object, as OpenAI's API has it."""

    name: str
    arguments: str


class ToolCallParser:
    """Feed it an assistant's text piece by piece; one parser reads one answer."""

    def __init__(self) -> None:
        # Seen but undecided: white space and the beginning of a tag.
        self._pending = ""
        # The parts of what may become a call, from its opening tag on; empty outside of one.
        self._block: list[str] = []
        self._object = _ObjectScanner()
        # White space before the block, and whether a call stands before it.
        self._held = ""
        self._after_call = False

    def feed(self, text: str) -> list[ContentText | ToolCall]:
        """What these characters complete: content as soon as it is certain, calls when closed."""
        events: list[ContentText | ToolCall] = []
        self._pending += text
        while self._advance(events):
            pass
        return _joined(events)

    def finish(self) -> list[ContentText | ToolCall]:
        """What is left at the end of the answer: an unfinished call is content."""
        rest = self._held + "".join(self._block) + self._pending
        self._pending, self._held, self._block = "", "", []
        if self._after_call and not rest.strip(WHITE_SPACE):
            return []
        return [ContentText(rest)] if rest else []

    def _advance(self, events: list[ContentText | ToolCall]) -> bool:
        """Decide about the front of the pending text; False when more text is needed first."""
        if not self._block:
            return self._advance_content(events)
        if not self._object.is_complete:
            return self._advance_object(events)
        return self._advance_close(events)

    def _advance_content(self, events: list[ContentText | ToolCall]) -> bool:
        position = self._pending.find(OPEN_TAG)
        found = position >= 0
        end = position if found else len(self._pending) - _tag_beginning(self._pending, OPEN_TAG)
        content = self._pending[:end]
        sure = content.rstrip(WHITE_SPACE)
        if sure:
            self._emit(events, sure)
        self._pending = self._pending[len(sure) :]
        if found:
            self._held = content[len(sure) :]
            self._block = [OPEN_TAG]
            self._pending = self._pending[len(self._held) + len(OPEN_TAG) :]
            self._object = _ObjectScanner()
        return found

    def _advance_object(self, events: list[ContentText | ToolCall]) -> bool:
        end = self._object.scan(self._pending)
        self._block.append(self._pending[:end])
        self._pending = self._pending[end:]
        if self._object.is_broken:
            self._give_up(events)
        return self._object.is_broken or self._object.is_complete

    def _advance_close(self, events: list[ContentText | ToolCall]) -> bool:
        rest = self._pending.lstrip(WHITE_SPACE)
        if CLOSE_TAG.startswith(rest[: len(CLOSE_TAG)]) and len(rest) < len(CLOSE_TAG):
            return False
        if not rest.startswith(CLOSE_TAG):
            self._give_up(events)
            return True
        end = len(self._pending) - len(rest) + len(CLOSE_TAG)
        call = _parse_call("".join(self._block)[len(OPEN_TAG) :])
        self._block.append(self._pending[:end])
        self._pending = self._pending[end:]
        if call is None:
            self._give_up(events)
            return True
        events.append(call)
        self._block, self._held, self._after_call = [], "", True
        return True

    def _give_up(self, events: list[ContentText | ToolCall]) -> None:
        """The block was no call: it is content, and reading goes on behind it."""
        text = self._held + "".join(self._block)
        self._block, self._held = [], ""
        # Its trailing white space may belong to a call that follows.
        kept = text.rstrip(WHITE_SPACE)
        self._emit(events, kept)
        self._pending = text[len(kept) :] + self._pending

    def _emit(self, events: list[ContentText | ToolCall], text: str) -> None:
        events.append(ContentText(text))
        self._after_call = False


def parse_tool_calls(text: str) -> list[ContentText | ToolCall]:
    """The content and the calls of a whole answer, in order."""
    parser = ToolCallParser()
    return _joined([*parser.feed(text), *parser.finish()])


class _ObjectScanner:
    """Finds where a JSON object ends, in any number of pieces, each character read once.

    It follows strings and brackets only; that the object is valid JSON is found out afterwards.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.is_broken = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str) -> int:
        """How far `text` belongs to the object; sets `is_complete` or `is_broken` if it ends."""
        position = 0
        while position < len(text) and not (self.is_complete or self.is_broken):
            position = self._step(text, position)
        return position

    def _step(self, text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        if self._in_string:
            return self._string_step(text, position)
        plain = OUTSIDE_PLAIN if self._depth else BEFORE_OBJECT
        match = plain.match(text, position)
        assert match is not None
        end = match.end()
        return end if end == len(text) else self._outside_step(text, end)

    def _string_step(self, text: str, position: int) -> int:
        match = STRING_PLAIN.match(text, position)
        assert match is not None
        end = match.end()
        if end == len(text):
            return end
        self._in_string = text[end] != '"'
        self._escaped = text[end] == "\\"
        # A raw control character, such as a line feed: no JSON string goes on over it.
        self.is_broken = self._in_string and not self._escaped
        return end if self.is_broken else end + 1

    def _outside_step(self, text: str, position: int) -> int:
        character = text[position]
        if character in "{[" and (self._depth or character == "{"):
            self._depth += 1
        elif character in "}]" and self._depth:
            self._depth -= 1
            self.is_complete = not self._depth
        elif character == '"' and self._depth:
            self._in_string = True
        else:
            self.is_broken = True
            return position
        return position + 1


def _parse_call(text: str) -> ToolCall | None:
    """The call that a JSON object describes; None when it is not JSON or not a call."""
    try:
        call: object = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(call, Mapping):
            return None
        fields = cast("Mapping[str, object]", call)
        name, arguments = fields.get("name"), fields.get("arguments")
        if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
            return None
        found = ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
        # An escaped half of a surrogate pair is valid JSON but no text: refused here.
        f"{found.name}{found.arguments}".encode()
        return found
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _tag_beginning(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


def _joined(events: list[ContentText | ToolCall]) -> list[ContentText | ToolCall]:
    """The same events with neighbouring content as one."""
    joined: list[ContentText | ToolCall] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, ContentText) and isinstance(last, ContentText):
            joined[-1] = ContentText(last.text + event.text)
        else:
            joined.append(event)
    return joined
