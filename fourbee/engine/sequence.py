"""One request's life: its tokens, how many of them are computed, and when it ends.

Plain data without arrays: keys and values are the model runner's, the order of requests is the
scheduler's. Stop strings are above the engine (`text_stream.py`): here are tokens only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from fourbee.engine.request import FinishReason, Request, ScoredToken

State = Literal["waiting", "running", "finished"]


class Sequence:
    """A request's tokens while it lives; `state` is moved on by the scheduler alone."""

    def __init__(
        self, request: Request, max_length: int, end_token_ids: Collection[int], seed: int
    ) -> None:
        """`max_length`: tokens of prompt and answer together; `end_token_ids` end the answer."""
        self.request = request
        self.max_length = max_length
        self.end_token_ids = frozenset(end_token_ids)
        self.seed = seed  # 64 bits
        self.state: State = "waiting"
        self.token_ids = list(request.prompt_ids)
        # Tokens whose keys and values exist.
        self.computed = 0
        # Scores of the prompt's tokens from the second on, while they are asked for and growing.
        self.prompt_scores: list[ScoredToken] = []

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def generated_ids(self) -> list[int]:
        """The answer's tokens so far."""
        return self.token_ids[self.prompt_length :]

    @property
    def uncomputed(self) -> int:
        """Tokens that the model has yet to see: many while the prompt is read, then one."""
        return len(self.token_ids) - self.computed

    @property
    def position(self) -> int:
        """The absolute position of the next token to be sampled."""
        return len(self.token_ids)

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the sampled token in; the reason when the request ends with it.

        A token of `end_token_ids` is not part of the answer.
        """
        if token_id in self.end_token_ids:
            return "stop"
        self.token_ids.append(token_id)
        return "length" if len(self.token_ids) >= self.max_length else None
