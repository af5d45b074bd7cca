"""Corpora without a tokenizer, from the lengths of their documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourbee.training.corpus import Corpus
from fourbee.training.packing import Pack, Piece, make_packs
from fourbee.training.sources import Source


def corpus_of(
    lengths: Sequence[int],
    cuttable: bool = False,
    parts: int = 1,
    name: str = "a",
    **of_source: Any,
) -> Corpus:
    """Documents of these lengths, all learned; token ids count from 0 over the whole corpus."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens, samples = int(offsets[-1]), len(lengths) // parts
    return Corpus(
        source=Source(Path(f"{name}.jsonl"), **of_source),
        ids=np.arange(tokens, dtype=np.int32),
        learned=np.ones(tokens, np.bool_),
        offsets=offsets,
        difficulty=np.diff(offsets[::parts]).astype(np.float64),
        cuttable=np.full(samples, cuttable),
        labels=np.zeros(samples, np.bool_),
        lines=np.arange(1, samples + 1),
        parts=parts,
    )


def pack_of(corpus: Corpus, samples: Sequence[int]) -> Pack:
    """Whole samples in one pack, in this order as far as `documents` tells."""
    pieces = [Piece(0, int(sample), 0, corpus.tokens(int(sample))) for sample in samples]
    (pack,) = make_packs([corpus], pieces, sum(piece.tokens for piece in pieces))
    return pack
