"""What goes into the engine and what comes out: frozen plain data, fit for a socket.

No tensors, no callbacks, no text: the engine works on token ids. Text, stop strings and chat are
above it (`text_stream.py`, `llm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fourbee.engine.sampling import SamplingParams
from fourbee.model.attention_modes import ModeName

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt to be continued. `id` is the caller's and unique among living requests."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    # Log-probabilities of the prompt's own tokens, with this many alternatives; None = not asked.
    prompt_logprobs: int | None = None
    priority: int = 0  # smaller goes first
    # Whose the text is: keys and values are shared within a namespace only.
    namespace: str = ""
    attention: ModeName = "dense"
    # A conversation whose tokens are remembered, so that its next turn goes on from them.
    context_id: str | None = None


@dataclass(frozen=True)
class ScoredToken:
    """A token with the model's log-probability of it, and the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptScored:
    """The prompt's tokens from the second on, scored (the first has nothing before it)."""

    request_id: str
    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class TokenGenerated:
    """One more token; an end-of-text token is not reported."""

    request_id: str
    token: ScoredToken


@dataclass(frozen=True)
class Finished:
    """The last event of a request. `error` is one clear line, for reason "error" alone."""

    request_id: str
    reason: FinishReason
    error: str | None = None
    # Tokens of the prompt, and how many of them had keys and values already.
    prompt_tokens: int = 0
    cached_tokens: int = 0


Event = PromptScored | TokenGenerated | Finished
