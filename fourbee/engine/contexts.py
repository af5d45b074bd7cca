"""What makes contexts last: who the model is, the store on the disk, the tokens of conversations.

The engine asks here when a request comes and when it ends. Pages are written and read elsewhere
(`kv_cache.py`); what a conversation's tokens were is `context_history.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from fourbee.engine.context_history import Piece, RecentContexts, rejoined
from fourbee.engine.context_store import ContextStore
from fourbee.engine.request import Request
from fourbee.engine.sequence import Sequence

# Pages of requests with a context are written behind this often, seconds.
WRITE_EVERY = 10.0


class Contexts:
    """Contexts of one model; without a store they last as long as the process."""

    def __init__(
        self,
        weights: str = "",
        tokenizer: str = "",
        piece: Piece = lambda token_id: None,
        store: ContextStore | None = None,
    ) -> None:
        """Digests of the weights and the tokenizer; `piece` as in `rejoined`."""
        self.weights = weights
        self.tokenizer = tokenizer
        self.store = store
        self._piece = piece
        self._memory = store or RecentContexts()
        self._written = time.monotonic()

    def resumed(self, request: Request) -> Request:
        """The request, its prompt in the tokens that its context is remembered with."""
        if request.context_id is None:
            return request
        known = self._memory.recall(request.context_id, request.namespace)
        if known is None:
            return request
        return replace(request, prompt_ids=rejoined(known, request.prompt_ids, self._piece))

    def remember(self, sequence: Sequence) -> None:
        """Keeps the tokens of a context whose request has ended."""
        request = sequence.request
        if request.context_id is not None:
            self._memory.remember(
                request.context_id, request.namespace, sequence.recipe, sequence.token_ids
            )

    def is_time(self, sequences: Iterable[Sequence]) -> bool:
        """Whether pages should be written though there is work: a context's, every few seconds."""
        if time.monotonic() - self._written < WRITE_EVERY:
            return False
        if all(one.request.context_id is None for one in sequences):
            return False
        self._written = time.monotonic()
        return True

    def close(self) -> None:
        """Ends the store."""
        if self.store is not None:
            self.store.close()
