"""Log-probabilities of tokens in the two forms that OpenAI's API has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourbee.engine.request import ScoredToken
from fourbee.server.answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TokenLogprob,
)
from fourbee.text.tokenizer import Tokenizer

# JSON has no minus infinity; OpenAI's API writes this.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class PlacedToken:
    """A token of a text, where it begins in characters, and its score where it has one."""

    token_id: int
    scored: ScoredToken | None
    offset: int


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is part of a character as OpenAI writes it, `bytes:\\xe4\\xb8`."""
    piece = tokenizer.piece(token_id)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[PlacedToken]) -> CompletionLogprobs:
    """The form of /v1/completions: a list for each property; the alternatives by their text.

    The token itself is among its alternatives, as in OpenAI's API.
    """

    def alternatives(scored: ScoredToken) -> dict[str, float]:
        pairs = [*scored.top, (scored.token_id, scored.logprob)]
        texts: dict[str, float] = {}
        for token_id, logprob in pairs:
            texts.setdefault(token_text(tokenizer, token_id), _finite(logprob))
        return texts

    return CompletionLogprobs(
        tokens=[token_text(tokenizer, token.token_id) for token in tokens],
        token_logprobs=[
            _finite(token.scored.logprob) if token.scored else None for token in tokens
        ],
        top_logprobs=[alternatives(token.scored) if token.scored else None for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken]) -> ChatLogprobs:
    """The form of /v1/chat/completions: an object for each token."""

    def one(token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(
            token=token_text(tokenizer, token_id),
            logprob=_finite(logprob),
            bytes=list(tokenizer.piece(token_id)),
        )

    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **one(token.token_id, token.logprob).model_dump(),
                top_logprobs=[one(token_id, logprob) for token_id, logprob in token.top],
            )
            for token in tokens
        ]
    )


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
