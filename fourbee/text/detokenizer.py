"""Text that grows token by token, for streaming.

A token may hold half a character: its bytes wait until the character is whole, so that what was
handed out never has to be taken back. Each token costs the time of its own bytes only.

It knows nothing of stop strings or tool calls: it turns ids into text.
"""

from __future__ import annotations

import codecs

from fourbee.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """One sequence's decoder: all that it returns, joined, equals `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, skip_control_tokens: bool = False) -> None:
        """`skip_control_tokens` as in `Tokenizer.decode`."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_token_ids if skip_control_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often a word, sometimes nothing."""
        if token_id in self._hidden:
            return ""
        return self._decoder.decode(self._tokenizer.piece(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole, else nothing."""
        return self._decoder.decode(b"", final=True)
