"""One request's life: its tokens, how many of them are computed, its pages, and when it ends.

Plain data without arrays: pages are numbers that `kv_cache.py` gives and takes, the order of
requests is the scheduler's. Stop strings are above the engine (`text_stream.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, Protocol

from fourbee.engine.request import FinishReason, Request, ScoredToken

if TYPE_CHECKING:
    from fourbee.engine.prefix_tree import Node

# In `pages`: a page that was given back, as no row sees it again.
DROPPED = -1

State = Literal["waiting", "running", "finished"]


class Mode(Protocol):
    """What of an attention mode decides about pages (`model/attention_modes.py` has them)."""

    @property
    def shares(self) -> bool: ...

    @property
    def held(self) -> int | None: ...

    @property
    def whole_pages(self) -> bool: ...

    def droppable(self, computed: int) -> range: ...


class _Whole:
    """Every page is kept, and shared with texts that begin alike."""

    shares = True
    held = None
    whole_pages = False

    def droppable(self, computed: int) -> range:
        return range(0)


WHOLE: Mode = _Whole()


class Sequence:
    """A request's tokens while it lives; `state` is moved on by the scheduler alone."""

    def __init__(
        self,
        request: Request,
        max_length: int,
        end_token_ids: Collection[int],
        seed: int,
        recipe: bytes = b"",
        mode: Mode = WHOLE,
    ) -> None:
        """`max_length`: tokens of prompt and answer together; `end_token_ids` end the answer.

        `recipe`: what its keys and values are made of; only sequences of one recipe share any.
        """
        self.request = request
        self.max_length = max_length
        self.end_token_ids = frozenset(end_token_ids)
        self.seed = seed  # 64 bits
        self.state: State = "waiting"
        self.token_ids = list(request.prompt_ids)
        self.recipe = recipe
        self.mode = mode
        # Tokens whose keys and values exist, and how many of them did when it started.
        self.computed = 0
        self.cached = 0
        # Its pages in order, and the nodes of the prefix tree that the first of them are.
        self.pages: list[int] = []
        self.nodes: list[Node] = []
        # Whether more of its beginning may be on the disk; tokens that came from there, and the
        # time that it took.
        self.restoring = False
        self.restored = 0
        self.restore_seconds = 0.0
        self.arrival = 0  # its number among all requests
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
    def room_needed(self) -> int:
        """Positions that are kept at once while its tokens are read."""
        held = self.mode.held
        return len(self.token_ids) if held is None else min(held, len(self.token_ids))

    @property
    def scoring(self) -> bool:
        """Whether the rows of its whole prompt are still needed, for their scores."""
        return self.request.prompt_logprobs is not None and not self.generated_ids

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first."""
        return self.request.priority, self.arrival

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
