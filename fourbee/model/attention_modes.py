"""What the rows of a request attend to: all of it, dual chunks, some pages, or a window.

A mode is chosen for a request and says, for its rows, the pattern of keys and the positions that
each query variant is rotated with; variant 0 rotates the keys, too, and cached keys are never
rotated again. Keys of one mode are of no use to another. What patterns are is
`kernels/attention_pattern.py`, who drops pages `engine/kv_cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from fourbee.kernels.attention_pattern import (
    PAGE_KEYS,
    AttentionPattern,
    Causal,
    DualChunk,
    SlidingWindow,
)
from fourbee.kernels.sparse_attention import PageBudget, SparsePrompt
from fourbee.model.config import Qwen3Config

ModeName = Literal["dense", "dual-chunk", "sparse", "streaming"]
MODES: tuple[ModeName, ...] = get_args(ModeName)

Positions = npt.NDArray[np.int64]


class AttentionMode(Protocol):
    """How one request attends. Immutable."""

    @property
    def name(self) -> str:
        """Everything that decides its keys and values: part of their recipe."""
        ...

    @property
    def longest(self) -> int:
        """The most positions that it is made for."""
        ...

    @property
    def shares(self) -> bool:
        """Whether all its pages stay, so that whoever begins alike may share them."""
        ...

    @property
    def held(self) -> int | None:
        """The most positions that are kept at once, beside those of a step; None for all."""
        ...

    @property
    def pattern(self) -> AttentionPattern: ...

    def positions(self, start: int, count: int) -> Positions:
        """`[Q, count]` of the rows from position `start` on, a query variant a row of Q."""
        ...

    def droppable(self, computed: int) -> range:
        """The pages that no row from position `computed` on sees."""
        ...

    @property
    def whole_pages(self) -> bool:
        """Whether whole pages of a prompt are only read as such."""
        ...

    def for_prompt(self, length: int) -> AttentionMode:
        """The mode of one request whose prompt has so many tokens."""
        ...


@dataclass(frozen=True)
class DenseMode:
    """Every key up to a row's own, at its true distance."""

    longest: int
    name: str = "dense"
    shares: bool = True
    held: int | None = None
    whole_pages: bool = False

    @property
    def pattern(self) -> AttentionPattern:
        return Causal()

    def positions(self, start: int, count: int) -> Positions:
        return np.arange(start, start + count)[None]

    def for_prompt(self, length: int) -> AttentionMode:
        return self

    def droppable(self, computed: int) -> range:
        return range(0)


@dataclass(frozen=True)
class DualChunkMode:
    """Dual-chunk attention (An et al. 2024, arXiv 2402.17463), with a local part as in Qwen2.5-1M.

    A key is rotated with its place in its chunk. A row sees its own chunk at true distances, the
    chunk before it at true distances up to `local` and not beyond `trained`, and all earlier ones
    as if they were `trained` away from the beginnings of their chunks: no distance is longer than
    what the model was trained for, and none that matters is changed. A chunk has `trained - local`
    positions; within the first of them it is dense attention, bit for bit.
    """

    trained: int  # the longest distance that the model was trained for
    local: int
    longest: int
    shares: bool = True
    held: int | None = None
    whole_pages: bool = False

    def __post_init__(self) -> None:
        assert 0 < self.local < self.trained

    @property
    def name(self) -> str:
        return f"dual-chunk {self.trained} {self.local}"

    @property
    def chunk(self) -> int:
        return self.trained - self.local

    @property
    def pattern(self) -> AttentionPattern:
        return DualChunk(self.chunk)

    def positions(self, start: int, count: int) -> Positions:
        place = np.arange(start, start + count) % self.chunk
        successive = np.minimum(place + self.chunk, self.trained)
        return np.stack((place, successive, np.full_like(place, self.trained)))

    def for_prompt(self, length: int) -> AttentionMode:
        return self

    def droppable(self, computed: int) -> range:
        return range(0)


@dataclass(frozen=True)
class SparseMode:
    """A prompt is read block-sparse (`kernels/sparse_attention.py`); answers see everything.

    Its keys and values are near those of dense attention, not the same, and what chose its pages is
    kept with the request: nothing is shared.
    """

    longest: int
    budget: PageBudget = PageBudget()  # noqa: RUF009  (frozen)
    prompt: SparsePrompt | None = None  # of one request
    shares: bool = False
    held: int | None = None
    whole_pages: bool = True

    @property
    def name(self) -> str:
        return f"sparse {self.budget.share} {self.budget.least} {self.budget.recent}"

    @property
    def pattern(self) -> AttentionPattern:
        assert self.prompt is not None, "a mode of no request"
        return self.prompt

    def positions(self, start: int, count: int) -> Positions:
        return np.arange(start, start + count)[None]

    def for_prompt(self, length: int) -> AttentionMode:
        return replace(self, prompt=SparsePrompt(self.budget, length // PAGE_KEYS * PAGE_KEYS))

    def droppable(self, computed: int) -> range:
        return range(0)


@dataclass(frozen=True)
class StreamingMode:
    """The last `window` positions and the first page, for a text without end.

    Attention sinks (Xiao et al. 2023, arXiv 2309.17453): the first tokens take the attention that
    goes nowhere; without them a window falls apart. Keys keep their true positions; the query takes
    a second rotation for the sinks, at the distance that they had when the window was first full.
    What has left the window is gone: this does not extend what is recalled.
    """

    window: int
    longest: int = 1 << 40
    shares: bool = False
    whole_pages: bool = False

    def __post_init__(self) -> None:
        assert self.window >= 1

    @property
    def name(self) -> str:
        return f"streaming {self.window}"

    @property
    def held(self) -> int:
        return self.window + 2 * PAGE_KEYS

    @property
    def pattern(self) -> AttentionPattern:
        return SlidingWindow(self.window, PAGE_KEYS, sink_variant=1)

    def positions(self, start: int, count: int) -> Positions:
        true = np.arange(start, start + count)
        return np.stack((true, np.minimum(true, PAGE_KEYS + self.window - 1)))

    def for_prompt(self, length: int) -> AttentionMode:
        return self

    def droppable(self, computed: int) -> range:
        return range(1, max(1, (computed + 1 - self.window) // PAGE_KEYS))


def attention_modes(config: Qwen3Config, window: int, pages: int) -> dict[ModeName, AttentionMode]:
    """The modes of a model with so many pages.

    Streaming sees `window` positions, less where it was trained for less or pages are fewer: beside
    the window there are the sinks, the page that is leaving and some to go on with.
    """
    trained = config.max_position_embeddings
    window = max(1, min(window, trained - PAGE_KEYS, (pages - 4) * PAGE_KEYS))
    return {
        "dense": DenseMode(trained),
        # A chunk in 64 stays at true distances, as in Qwen2.5-1M (8,192 of 262,144 is twice that).
        "dual-chunk": DualChunkMode(trained, max(1, trained // 64), 4 * trained),
        "sparse": SparseMode(trained),
        "streaming": StreamingMode(window),
    }
