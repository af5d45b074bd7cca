"""What a source holds, as training would read it: for `fourbee data check` and `tokens`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.samples import Encoded, Form, Loss, difficulty_of, encode, form_of
from fourbee.training.sources import Sample, Source, each_sample, no_samples, read_raw

# How each form is learned from; the others as what the assistant says.
_LOSSES: Mapping[Form, Loss] = {"pair": "pair", "label": "label", "task": "prompt"}


@dataclass(frozen=True)
class Inspection:
    """Counts over the samples of a source; tokens are those of both sides of a pair together."""

    forms: Mapping[str, int]
    lengths: tuple[int, ...]  # tokens of each sample
    learned: int  # tokens
    duplicates: int  # samples whose content came before
    bad: int  # samples left out, where the source allows it
    first: Encoded

    @property
    def samples(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def percentiles(self) -> dict[str, int]:
        """Tokens of a sample: the least, the median and so on to the most."""
        names = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
        values = np.percentile(self.lengths, list(names.values()), method="closest_observation")
        return dict(zip(names, values.astype(int).tolist(), strict=True))


def encode_by_form(sample: Sample, tokenizer: Tokenizer, chat: ChatFormat) -> Encoded:
    """The tokens of a sample as the stage learns them that its form is for."""
    form = form_of(sample)
    loss = _LOSSES.get(form, "assistant") if form else "assistant"
    return encode(sample, loss, tokenizer, chat)


def inspect(source: Source, tokenizer: Tokenizer) -> Inspection:
    """Reads all samples. TrainingError names file and line of the first bad one."""
    chat = ChatFormat(tokenizer)
    forms: Counter[str] = Counter()
    seen: Counter[bytes] = Counter()
    lengths: list[int] = []
    learned = bad = 0
    first: Encoded | None = None

    def make(sample: Sample) -> tuple[Sample, Form | None, Encoded]:
        encoded = encode_by_form(sample, tokenizer, chat)
        difficulty_of(sample, 0)  # refused as it is in training
        return sample, form_of(sample), encoded

    for _, made in each_sample(source, read_raw(source), make):
        if made is None:
            bad += 1
            continue
        sample, form, encoded = made
        first = first or encoded
        forms[str(form)] += 1
        lengths.append(sum(len(ids) for ids, _ in encoded.documents))
        learned += sum(sum(mask[1:]) for _, mask in encoded.documents)
        seen[hashlib.sha256(json.dumps(sample, sort_keys=True, default=str).encode()).digest()] += 1
    if first is None:
        raise no_samples(source, bad)
    duplicates = sum(count - 1 for count in seen.values())
    return Inspection(forms, tuple(lengths), learned, duplicates, bad, first)
