"""Training data: JSON lines of samples, tokenised once, and packed into updates in a fixed order.

A line is a conversation `{"messages": [...], "tools": [...]}`, a raw text with its continuation
`{"prompt": "...", "completion": "..."}`, or plain `{"text": "..."}`. Nothing is dropped, split or
padded: an update is as many whole documents as fit its token budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import FourbeeError, TrainingError
from fourbee.foundation.json_files import parse_json
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer

Loss = Literal["all", "assistant"]


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents, one after another: document i is `offsets[i]:offsets[i + 1]`."""

    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]  # which tokens are to be predicted
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Pack:
    """Whole documents side by side: T tokens, to be attended document by document."""

    ids: npt.NDArray[np.int64]  # [T]
    positions: npt.NDArray[np.int64]  # [T], from 0 in each document
    learned: npt.NDArray[np.bool_]  # [T]: this token is a target (never a document's first)
    lengths: tuple[int, ...]

    @property
    def num_targets(self) -> int:
        return int(self.learned.sum())


def load_corpus(
    paths: Sequence[Path],
    tokenizer_folder: Path,
    loss: Loss,
    cache: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """The documents of `paths`, in order; tokenised once and kept under `cache`.

    Raises TrainingError naming file and line for a line that is not a sample.
    """
    key = _fingerprint([*paths, *_tokenizer_files(tokenizer_folder)], loss)
    cached = cache / f"tokens-{key}.npz"
    if cached.is_file():
        with np.load(cached) as arrays:
            return Corpus(arrays["ids"], arrays["learned"], arrays["offsets"])
    tokenizer = Tokenizer.load(tokenizer_folder)
    corpus = tokenise(read_lines(paths), tokenizer, loss, progress)
    cache.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(".partial.npz")
    np.savez(partial, ids=corpus.ids, learned=corpus.learned, offsets=corpus.offsets)
    partial.replace(cached)
    return corpus


def read_lines(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`(file:line, sample)` of every line of every file."""
    for path in paths:
        if not path.is_file():
            raise TrainingError(f"data {path}: no such file (fourbee data generate writes them)")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                try:
                    sample = parse_json(line)
                except UnicodeDecodeError:
                    raise TrainingError(f"{where}: not UTF-8 text") from None
                except json.JSONDecodeError as error:
                    raise TrainingError(f"{where}: not valid JSON: {error.msg}") from None
                if not isinstance(sample, dict):
                    raise TrainingError(f"{where}: expected a JSON object")
                yield where, sample


def tokenise(
    lines: Iterator[tuple[str, Mapping[str, Any]]],
    tokenizer: Tokenizer,
    loss: Loss,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Documents of all lines; with loss "assistant" at least one token of each must be learned."""
    chat = ChatFormat(tokenizer)
    ids: list[npt.NDArray[np.int32]] = []
    learned: list[npt.NDArray[np.bool_]] = []
    for where, sample in lines:
        try:
            document, mask = encode_sample(sample, tokenizer, chat)
        except FourbeeError as error:
            raise TrainingError(f"{where}: {error}") from None
        if loss == "all":
            mask = [True] * len(document)
        if not any(mask[1:]):
            raise TrainingError(f"{where}: nothing to learn: no assistant turn or completion")
        ids.append(np.array(document, np.int32))
        learned.append(np.array(mask, np.bool_))
        progress(1)
    if not ids:
        raise TrainingError("the training data holds no samples")
    offsets = np.cumsum([0, *(len(one) for one in ids)], dtype=np.int64)
    return Corpus(np.concatenate(ids), np.concatenate(learned), offsets)


def encode_sample(
    sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat
) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them the assistant says."""
    if "messages" in sample:
        return chat.encode_with_mask(sample["messages"], sample.get("tools") or None)
    end = tokenizer.token_id("<|endoftext|>")
    if "completion" in sample:
        prompt = tokenizer.encode(str(sample.get("prompt", "")), control_tokens=True)
        completion = [*tokenizer.encode(str(sample["completion"]), control_tokens=True), end]
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)
    if "text" in sample:
        text = [*tokenizer.encode(str(sample["text"]), control_tokens=True), end]
        return text, [True] * len(text)
    raise TrainingError("expected one of the keys messages, completion, text")


def document_order(count: int, epoch: int, seed: int, shuffle: bool) -> npt.NDArray[np.int64]:
    """The order of one epoch: depends on its arguments alone."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng((seed, epoch)).permutation(count)


def plan_updates(
    lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64], tokens_per_update: int
) -> list[npt.NDArray[np.int64]]:
    """Documents of each update of an epoch: whole documents, in order, up to the token budget."""
    updates: list[list[int]] = [[]]
    filled = 0
    for document in order:
        length = int(lengths[document])
        if updates[-1] and filled + length > tokens_per_update:
            updates.append([])
            filled = 0
        updates[-1].append(int(document))
        filled += length
    return [np.array(update, np.int64) for update in updates]


def make_pack(corpus: Corpus, documents: Sequence[int] | npt.NDArray[np.int64]) -> Pack:
    """The documents side by side."""
    spans = [slice(corpus.offsets[i], corpus.offsets[i + 1]) for i in documents]
    lengths = tuple(int(span.stop - span.start) for span in spans)
    learned = [corpus.learned[span].copy() for span in spans]
    for mask in learned:
        mask[0] = False
    return Pack(
        ids=np.concatenate([corpus.ids[span] for span in spans]).astype(np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        learned=np.concatenate(learned),
        lengths=lengths,
    )


def split_pack(
    corpus: Corpus, documents: npt.NDArray[np.int64], tokens_per_pack: int
) -> list[Pack]:
    """An update as packs of at most `tokens_per_pack` tokens (more only for one long document)."""
    parts = plan_updates(corpus.lengths, documents, tokens_per_pack)
    return [make_pack(corpus, part) for part in parts]


def _tokenizer_files(folder: Path) -> list[Path]:
    """What decides how samples become tokens: the vocabulary, the chat template, the end tokens."""
    beside = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    present = [folder / name for name in beside if (folder / name).is_file()]
    return [folder / "tokenizer.json", *present]


def _fingerprint(paths: Sequence[Path], loss: Loss) -> str:
    digest = hashlib.sha256(loss.encode())
    for path in paths:
        if not path.is_file():
            raise TrainingError(f"{path}: no such file")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
