"""From a source to its corpus: tokenised by one or more processes, and cached beside the run.

The cache of a source is a folder of plain .npy files, named by a digest of all that it depends on,
with a checksum: what is damaged is made anew, and what is half written is never seen.
"""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fourbee.foundation.errors import FourbeeError, TrainingError, UsageError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.corpus import ARRAYS, Corpus
from fourbee.training.samples import Encoded, Loss, difficulty_of, encode
from fourbee.training.sources import (
    Numbered,
    Sample,
    Source,
    Told,
    each_sample,
    no_samples,
    read_raw,
    tell_skipped,
)

# Of the layout of the cache and of how samples become tokens: raise it when either changes.
_VERSION = 1
# Samples that a process is given at once.
_CHUNK = 256

Chunk = list[tuple[int, Any]]
Reader = tuple[Tokenizer, ChatFormat]


def load_corpora(recipe: CorpusRecipe, loss: Loss, told: Told) -> tuple[Corpus, ...]:
    """The corpora of a recipe's sources, as `load_corpus`; `told` hears of each."""
    corpora = []
    for source in recipe.data:
        told(f"tokenising {source.path}")
        folder, cache = recipe.tokenizer_folder, recipe.output / "cache"
        corpora.append(load_corpus(source, folder, loss, cache, workers=recipe.workers))
        tell_skipped(source, corpora[-1].skipped, told)
    if not corpora:
        raise UsageError("data: expected at least one file of samples")
    return tuple(corpora)


class CorpusRecipe(Protocol):
    """What a recipe says of its data."""

    @property
    def data(self) -> tuple[Source, ...]: ...

    @property
    def output(self) -> Path: ...

    @property
    def tokenizer_folder(self) -> Path: ...

    @property
    def workers(self) -> int: ...


def load_corpus(
    source: Source,
    tokenizer_folder: Path,
    loss: Loss,
    cache: Path,
    progress: Callable[[int], None] = lambda _: None,
    workers: int = 1,
) -> Corpus:
    """The corpus of a source; tokenised once and kept under `cache`, mapped into memory.

    `progress` is told of samples done. Raises TrainingError naming file and line of the first
    sample that is none.
    """
    folder = cache / f"{source.name}-{_fingerprint(source, tokenizer_folder, loss)}"
    kept = _read(folder, source)
    if kept is None:
        _write(folder, tokenise(source, tokenizer_folder, loss, progress, workers))
        kept = _read(folder, source)
        if kept is None:
            raise TrainingError(f"{folder}: unreadable just after it was written")
    return kept


def tokenise(
    source: Source,
    tokenizer_folder: Path,
    loss: Loss,
    progress: Callable[[int], None] = lambda _: None,
    workers: int = 1,
) -> Corpus:
    """The corpus of a source; the same for any number of `workers` (processes)."""
    parts: list[Corpus] = []
    for part in _corpora(source, tokenizer_folder, loss, workers):
        parts.append(part)
        progress(len(part))
    if not any(len(part) for part in parts):
        raise no_samples(source, sum(part.skipped for part in parts))
    return _joined(source, parts)


def _corpora(source: Source, folder: Path, loss: Loss, workers: int) -> Iterator[Corpus]:
    """Chunk after chunk. The first bad sample is the one that is raised, whoever found it."""
    if workers <= 1:
        reader = _reader(folder)
        yield from (_encode(source, reader, loss, chunk) for chunk in _chunks(read_raw(source)))
        return
    pending: deque[Future[Corpus]] = deque()
    unread: list[FourbeeError] = []
    # Not forked: the parent may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            for chunk in _until_unread(_chunks(read_raw(source)), unread):
                pending.append(pool.submit(_encode_in_process, source, folder, loss, chunk))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
    if unread:
        raise unread[0]


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _until_unread(chunks: Iterator[Chunk], unread: list[FourbeeError]) -> Iterator[Chunk]:
    """The chunks before what cannot be read; its error is kept, as one of them may be bad."""
    try:
        yield from chunks
    except FourbeeError as error:
        unread.append(error)


def _chunks(samples: Numbered) -> Iterator[Chunk]:
    chunk: Chunk = []
    try:
        for one in samples:
            chunk.append(one)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except FourbeeError:
        # One of those before what cannot be read may be bad.
        yield chunk
        raise
    if chunk:
        yield chunk


def _encode_in_process(source: Source, folder: Path, loss: Loss, chunk: Chunk) -> Corpus:
    return _encode(source, _kept_reader(folder), loss, chunk)


def _encode(source: Source, reader: Reader, loss: Loss, chunk: Chunk) -> Corpus:
    tokenizer, chat = reader

    def make(sample: Sample) -> tuple[float, Encoded]:
        one = encode(sample, loss, tokenizer, chat)
        return difficulty_of(sample, sum(len(ids) for ids, _ in one.documents)), one

    made = each_sample(source, chunk, make)
    encoded = [(number, *one) for number, one in made if one is not None]
    return corpus_of(source, loss, encoded, skipped=len(chunk) - len(encoded))


def corpus_of(
    source: Source, loss: Loss, encoded: Sequence[tuple[int, float, Encoded]], skipped: int = 0
) -> Corpus:
    """Encoded samples, each with its line and difficulty, as a corpus in memory."""
    samples = [one for _, _, one in encoded]
    documents = [document for one in samples for document in one.documents]
    return Corpus(
        source=source,
        ids=np.array([i for ids, _ in documents for i in ids], np.int32),
        learned=np.array([one for _, learned in documents for one in learned], np.bool_),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in documents)], dtype=np.int64),
        difficulty=np.array([difficulty for _, difficulty, _ in encoded], np.float64),
        cuttable=np.array([one.cuttable for one in samples], np.bool_),
        labels=np.array([one.label for one in samples], np.bool_),
        lines=np.array([number for number, _, _ in encoded], np.int64),
        answers=tuple(one.answer for one in samples) if loss == "prompt" else (),
        parts=2 if loss == "pair" else 1,
        skipped=skipped,
    )


def _reader(folder: Path) -> Reader:
    tokenizer = Tokenizer.load(folder)
    return tokenizer, ChatFormat(tokenizer)


@cache
def _kept_reader(folder: Path) -> Reader:
    """For processes that end with the source; in others the files may change."""
    return _reader(folder)


def _joined(source: Source, parts: Sequence[Corpus]) -> Corpus:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ARRAYS
        if name != "offsets"
    }
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Corpus(
        source,
        offsets=offsets,
        answers=tuple(answer for part in parts for answer in part.answers),
        parts=parts[0].parts,
        skipped=sum(part.skipped for part in parts),
        **arrays,
    )


def _read(folder: Path, source: Source) -> Corpus | None:
    """What is kept in the folder; None where nothing is, or not what was written."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        if about["checksums"] != {name: zlib.crc32(array) for name, array in arrays.items()}:
            return None
        about["answers"] = tuple(about["answers"])
        del about["checksums"]
        return Corpus(source, **arrays, **about)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write(folder: Path, corpus: Corpus) -> None:
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.partial-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        _write_arrays(partial, corpus)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"{folder}: cannot be written: {error.strerror or 'no space left'}"
        ) from None
    # Here is something only if it is damaged, or just written by another process of the run.
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _write_arrays(partial: Path, corpus: Corpus) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(partial / f"{name}.npy", getattr(corpus, name))
    about = {
        "checksums": {name: zlib.crc32(getattr(corpus, name)) for name in ARRAYS},
        "answers": corpus.answers,
        "parts": corpus.parts,
        "skipped": corpus.skipped,
    }
    (partial / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _fingerprint(source: Source, tokenizer_folder: Path, loss: Loss) -> str:
    """All that decides how samples become tokens: the vocabulary, the chat template, the ends."""
    names = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    beside = [tokenizer_folder / name for name in names if (tokenizer_folder / name).is_file()]
    about = (_VERSION, loss, source.format, source.bad_samples, source.take, source.path.name)
    digest = hashlib.sha256(repr(about).encode())
    for path in [*source.files(), tokenizer_folder / "tokenizer.json", *beside]:
        if not path.is_file():
            raise TrainingError(f"{path}: no such file")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
