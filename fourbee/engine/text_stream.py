"""One answer's text as it grows: whole characters, stop strings cut off, tokens with their places.

The engine makes tokens; this makes text of them, for streams and whole answers alike, so that both
are the same. It knows no chat and no tool calls.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fourbee.engine.request import FinishReason, ScoredToken
from fourbee.engine.sampling import SamplingParams
from fourbee.text.detokenizer import IncrementalDetokenizer
from fourbee.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextToken:
    """A token and where its text begins, in characters of the answer's text."""

    scored: ScoredToken
    offset: int


@dataclass(frozen=True)
class TextDelta:
    """What one more token adds: text that is certain, the tokens that it came from, the end."""

    text: str
    tokens: tuple[TextToken, ...]
    finish_reason: FinishReason | None = None


class TextStream:
    """Feed it an answer's tokens; the texts that it returns, joined, are the answer's text.

    Text that may become a stop string is held back. The answer ends before the stop string that is
    complete first; of two that end at the same character, before the longer. Tokens are handed out
    with the first character of their text, so that those of a stop string are not.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, skip_control_tokens: bool = True
    ) -> None:
        """`skip_control_tokens` as in `Tokenizer.decode`."""
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_control_tokens)
        self._stop = params.stop
        self._held = ""
        self._length = 0  # characters handed out
        self._tokens: deque[TextToken] = deque()  # not handed out yet
        self.num_tokens = 0  # all that were pushed: what the answer cost
        self.finish_reason: FinishReason | None = None

    def push(self, token: ScoredToken) -> TextDelta:
        """One more token. When the delta says "stop", abort the request: no more may be pushed."""
        self.num_tokens += 1
        self._tokens.append(TextToken(token, self._length + len(self._held)))
        return self._extend(self._detokenizer.push(token.token_id), None)

    def finish(self, reason: FinishReason) -> TextDelta:
        """The rest, when the engine has finished the request for this reason."""
        return self._extend(self._detokenizer.finish(), reason)

    def _extend(self, text: str, reason: FinishReason | None) -> TextDelta:
        assert self.finish_reason is None, "the answer has ended"
        self._held += text
        stop = self._stop_start()
        if stop is not None:
            return self._hand_out(stop, "stop")
        kept_back = 0 if reason else self._undecided()
        return self._hand_out(len(self._held) - kept_back, reason)

    def _hand_out(self, count: int, reason: FinishReason | None) -> TextDelta:
        """The first `count` held characters with their tokens."""
        all_of_it = reason is not None and count == len(self._held)
        text, self._held = self._held[:count], self._held[count:]
        self._length += count
        tokens: list[TextToken] = []
        while self._tokens and (all_of_it or self._tokens[0].offset < self._length):
            tokens.append(self._tokens.popleft())
        self.finish_reason = reason
        return TextDelta(text, tuple(tokens), reason)

    def _stop_start(self) -> int | None:
        """Where, in the held text, the stop string begins that is complete first."""
        found = [(self._held.find(stop), stop) for stop in self._stop]
        ends = [(start + len(stop), start) for start, stop in found if start >= 0]
        return min(ends)[1] if ends else None

    def _undecided(self) -> int:
        """How many characters at the end of the held text may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            ending = self._held[-length:]
            if any(len(stop) > length and stop.startswith(ending) for stop in self._stop):
                return length
        return 0
