"""A source as tokens: documents one after another, tokenised once and kept on disk.

Arrays of a kept corpus are mapped into memory, so that runs share them and read what they need;
while it is tokenised all of it is in memory. Not here: what a sample means (`samples.py`), and
which samples an update has (`run_plan.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fourbee.training.sources import Source

# The fields that are arrays.
ARRAYS = ("ids", "learned", "offsets", "difficulty", "cuttable", "labels", "lines")


@dataclass(frozen=True)
class Corpus:
    """The tokenised samples of a source: D documents, of which each sample has `parts`.

    Document i is `offsets[i]:offsets[i + 1]`. A preference pair is two, the chosen one first.
    """

    source: Source
    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]  # which tokens are to be predicted
    offsets: npt.NDArray[np.int64]  # [D + 1]
    difficulty: npt.NDArray[np.float64]  # [samples]: the key "difficulty", else the tokens
    cuttable: npt.NDArray[np.bool_]  # [samples]: a text that may be cut where it is too long
    labels: npt.NDArray[np.bool_]  # [samples]: of unpaired preferences
    lines: npt.NDArray[np.int64]  # [samples]: in the source, from 1
    answers: tuple[str, ...] = ()  # [samples]: of tasks; empty for others
    parts: int = 1
    skipped: int = 0  # bad samples that were left out, where the source allows it

    def __len__(self) -> int:
        """Samples."""
        return len(self.difficulty)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[D] tokens of each document."""
        return np.diff(self.offsets)

    @cached_property
    def sample_tokens(self) -> npt.NDArray[np.int64]:
        """[samples] tokens of each sample, of both sides of a pair together."""
        return np.diff(self.offsets[:: self.parts])

    def tokens(self, sample: int) -> int:
        """Tokens of a sample."""
        return int(self.sample_tokens[sample])

    def only(self, samples: npt.NDArray[np.int64]) -> Corpus:
        """The corpus of some of the samples, in memory."""
        documents = (samples[:, None] * self.parts + np.arange(self.parts)).ravel()
        spans = [slice(*self.offsets[one : one + 2]) for one in documents]
        chosen = {name: getattr(self, name)[samples]
                  for name in ("difficulty", "cuttable", "labels", "lines")}  # fmt: skip
        return replace(
            self,
            ids=np.concatenate([self.ids[span] for span in spans]),
            learned=np.concatenate([self.learned[span] for span in spans]),
            offsets=np.concatenate(([0], np.cumsum(self.lengths[documents]))),
            answers=tuple(self.answers[one] for one in samples) if self.answers else (),
            **chosen,
        )

    def spans(self, sample: int, first: int, stop: int) -> list[slice]:
        """Where in `ids` the documents of a sample are; of one document, its `first:stop`."""
        if self.parts == 1:
            start = int(self.offsets[sample])
            return [slice(start + first, start + stop)]
        documents = range(sample * self.parts, (sample + 1) * self.parts)
        return [slice(int(self.offsets[i]), int(self.offsets[i + 1])) for i in documents]

    def where(self, sample: int) -> str:
        """`file:line` of a sample, for messages."""
        return f"{self.source.path}:{self.lines[sample]}"
