"""Marks that keep the control strings in people's text apart from those of a chat template.

Before rendering, each character that could begin a control token ("<" for Qwen) is replaced, in
every string that comes from outside, by a private character. What still reads as a control token
in the rendered text was then written by the template: neither content nor two contents side by
side can forge one, and nothing depends on a secret, as the private characters are chosen among
those that the request does not contain.

Two exceptions keep templates exact that look into the text. The assistant's own words keep markup
(`<think>`, `<tool_call>`), which become tokens, as they were when it wrote them. Other text keeps
one markup string at its very start and end (`<tool_response>` is looked for there), with a private
character beside it that says: text, not token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import cast

from fourbee.text.tokenizer import Tokenizer

PRIVATE_PLANE = range(0xF0000, 0xFFFFE)


class ControlStrings:
    """What can be a control token's text, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = tokenizer.control_tokens
        self.first_characters = "".join(sorted({text[0] for text in self.tokens}))
        self.alternatives = _alternatives(self.tokens)
        markup = [t for t, i in self.tokens.items() if i not in tokenizer.special_token_ids]
        self.markup = re.compile(_alternatives(markup))
        # Kept whole at a text's edge only if no other control token could begin inside of it.
        safe = [t for t in markup if not set(t[1:]) & set(self.first_characters)]
        self.edge_start = re.compile(rf"\A{_alternatives(safe)}")
        self.edge_end = re.compile(rf"{_alternatives(safe)}\Z")

    def in_any(self, strings: Iterable[str]) -> bool:
        """Whether a control token could begin in any of the strings."""
        return any(first in string for string in strings for first in self.first_characters)


class ContentMarks:
    """The private characters of one rendering: marks strings, and reads marked text back."""

    def __init__(self, controls: ControlStrings, strings: Iterable[str]) -> None:
        """`strings`: all text that takes part, the template's included."""
        self._controls = controls
        used = set[str]().union(*strings)
        unused = (chr(code) for code in PRIVATE_PLANE if chr(code) not in used)
        self._text_before, self._text_after = next(unused), next(unused)
        self._mark = {ord(first): next(unused) for first in controls.first_characters}
        self._unmark: dict[int, str | None] = {
            ord(private): chr(code) for code, private in self._mark.items()
        }
        self._unmark |= {ord(self._text_before): None, ord(self._text_after): None}

    def mark(self, value: object, assistant_words: bool = False) -> object:
        """A copy of `value` with every string in it marked."""
        if isinstance(value, str):
            return self._mark_words(value) if assistant_words else self._mark_text(value)
        if isinstance(value, Mapping):
            return self.mark_object(cast("Mapping[str, object]", value), assistant_words)
        if isinstance(value, list | tuple):
            return [self.mark(item, assistant_words) for item in cast("list[object]", value)]
        return value

    def mark_object(
        self, value: Mapping[str, object], assistant_words: bool = False
    ) -> dict[str, object]:
        """A copy of an object with every string in it marked, keys included."""
        return {
            self._mark_text(key): self.mark(item, assistant_words) for key, item in value.items()
        }

    def unmark(self, marked: str) -> str:
        """The text without marks."""
        return marked.translate(self._unmark)

    def split(self, marked: str) -> Iterator[str | int]:
        """The unmarked text between the template's control tokens, and the ids of these."""
        pattern = _token_pattern(self._controls.alternatives, self._text_after, self._text_before)
        for index, part in enumerate(pattern.split(marked)):
            if index % 2:
                yield self._controls.tokens[part]
            elif part:
                yield self.unmark(part)

    def _mark_words(self, text: str) -> str:
        """Marked but for markup."""
        kept = 0
        parts: list[str] = []
        for match in self._controls.markup.finditer(text):
            parts += [text[kept : match.start()].translate(self._mark), match.group()]
            kept = match.end()
        return "".join(parts) + text[kept:].translate(self._mark)

    def _mark_text(self, text: str) -> str:
        """Marked but for one markup string at the start and one at the end, flagged as text."""
        start = end = ""
        if found := self._controls.edge_start.search(text):
            start, text = found.group() + self._text_before, text[found.end() :]
        if found := self._controls.edge_end.search(text):
            text, end = text[: found.start()], self._text_after + found.group()
        return start + text.translate(self._mark) + end


def strings_in(value: object) -> Iterator[str]:
    """Every string in nested lists and dictionaries, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[str, object]", value).items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[object]", value):
            yield from strings_in(item)


def _alternatives(texts: Iterable[str]) -> str:
    """A pattern for any of `texts`, the longest first, as the tokenizer takes them."""
    ordered: Sequence[str] = sorted(texts, key=len, reverse=True)
    return f"(?>{'|'.join(map(re.escape, ordered))})" if ordered else "(?!)"


@lru_cache(maxsize=16)
def _token_pattern(alternatives: str, text_after: str, text_before: str) -> re.Pattern[str]:
    return re.compile(f"(?<!{text_after})({alternatives})(?!{text_before})")
