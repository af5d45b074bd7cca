"""The files of a context store looked over: index and files made to agree, what may go first, what
a context has on disk, what damage there is.

Functions of a folder and its index's rows; when they run is the store's business
(`context_store.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from fourbee.engine.kv_recipe import is_root, page_keys
from fourbee.engine.store_index import IndexRow, StoreIndex
from fourbee.engine.stored_file import (
    CONTEXT,
    PAGE,
    TEMPORARY,
    DamagedFileError,
    FileHead,
    file_name,
    open_file,
    read_head,
    text_bytes,
)

logger = logging.getLogger(__name__)

_NAME = re.compile(rf"[0-9a-f]{{64}}({re.escape(PAGE)}|{re.escape(CONTEXT)})")
_ABANDONED_SECONDS = 600.0  # a file that is being written for longer has lost its writer


@dataclass(frozen=True)
class StoredContext:
    """A named context as the store has it."""

    context_id: str
    namespace: str
    recipe: str  # digest of the recipe, in hexadecimal
    tokens: int
    pages: int  # whole pages, of the first tokens on, that are here
    pages_of_all: int  # whole pages that its tokens fill
    bytes: int  # of the pages that are here; contexts that begin alike share them
    last_use: float  # seconds since 1970


@dataclass(frozen=True)
class Pruned:
    """What was removed."""

    pages: int
    contexts: int
    bytes: int

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            self.pages + other.pages, self.contexts + other.contexts, self.bytes + other.bytes
        )


@dataclass(frozen=True)
class Verified:
    """What reading every file came to."""

    pages: int
    contexts: int
    bytes: int
    bad: tuple[str, ...]  # names of damaged files that were removed, and why


def index_row(head: FileHead, size: int, used: float) -> IndexRow:
    """The row of a file of `size` bytes."""
    is_context = head.context_id is not None
    return IndexRow(head.key, head.parent, text_bytes(head.namespace), is_context, size, used)


def reconcile(folder: Path, index: StoreIndex, *, thorough: bool = False) -> list[str]:
    """Takes in what the index does not know and forgets what is gone.

    After a crash, a lost index, or files removed by hand. `thorough`: heads that it knows are read
    again too. Files with damaged heads go, and are returned as in `Verified`; so do those that lost
    their writer. Raises OSError, sqlite3.Error.
    """
    known = {row.key: row for row in index.rows()}
    found, changed, bad = set(), [], []
    for entry, status in _entries(folder):
        if entry.name.startswith(TEMPORARY[0]) and entry.name.endswith(TEMPORARY[1]):
            if status.st_mtime < time.time() - _ABANDONED_SECONDS:
                Path(entry.path).unlink(missing_ok=True)
            continue
        if not _NAME.fullmatch(entry.name):
            continue
        key = bytes.fromhex(entry.name.partition(".")[0])
        row = known.get(key)
        if thorough or row is None or row.size != status.st_size:
            path = Path(entry.path)
            try:
                head = read_head(path)
            except OSError:  # gone meanwhile, or another user's
                continue
            except DamagedFileError as error:
                remove_damaged(path, error)
                bad.append(f"{path.name}: {error}")
                continue
            changed.append(index_row(head, status.st_size, row.used if row else status.st_mtime))
        found.add(key)
    with index.transaction():
        index.add(changed)
        index.remove(known.keys() - found)
    return bad


def removal_order(rows: Iterable[IndexRow]) -> list[tuple[IndexRow, float]]:
    """What is least worth keeping first, each with the last use of it or of a page after it.

    A page comes before the one that it follows, without which it is useless.
    """
    by_key = {row.key: row for row in rows}
    seen: set[bytes] = set()
    keeping: list[tuple[IndexRow, float]] = []
    for latest in sorted(by_key.values(), key=lambda row: row.used, reverse=True):
        before: list[IndexRow] = []
        row: IndexRow | None = latest
        while row is not None and row.key not in seen:
            seen.add(row.key)
            before.append(row)
            row = by_key.get(row.parent)
        keeping += [(row, latest.used) for row in reversed(before)]
    return keeping[::-1]


def followed_by(parent: bytes, rows: Iterable[IndexRow]) -> set[bytes]:
    """The keys of the stored pages before a page whose parent is this."""
    parents = {row.key: row.parent for row in rows}
    before: set[bytes] = set()
    while parent in parents and parent not in before:
        before.add(parent)
        parent = parents[parent]
    return before


def stored_contexts(folder: Path, rows: Sequence[IndexRow]) -> Iterator[StoredContext]:
    """The contexts among these rows, with what is stored of them."""
    sizes = {row.key: row.size for row in rows}
    for row, head in _contexts(folder, rows):
        assert head.context_id is not None
        keys = list(page_keys(head.parent, head.token_ids))
        here = list(takewhile(sizes.__contains__, keys))
        yield StoredContext(
            head.context_id, head.namespace, head.parent.hex(), len(head.token_ids),
            len(here), len(keys), sum(map(sizes.__getitem__, here)), row.used,
        )  # fmt: skip


def chosen(
    folder: Path,
    rows: Sequence[IndexRow],
    older_than: float | None,
    namespace: str | None,
    context_id: str | None,
) -> list[IndexRow]:
    """What `ContextStore.prune` may remove under these conditions, in the order of removal."""
    owner = None if namespace is None else text_bytes(namespace)
    latest = None if older_than is None else time.time() - older_than
    named = None if context_id is None else _only_of(folder, context_id, namespace, rows)
    return [
        row
        for row, used in removal_order(rows)
        if (owner is None or row.namespace == owner)
        and (latest is None or used < latest)
        and (named is None or row.key in named)
    ]


def remove(folder: Path, index: StoreIndex, rows: Sequence[IndexRow], to_bytes: int) -> Pruned:
    """Removes files in this order, until the store has no more than so many bytes.

    Within a transaction: other processes, which wait, never count what is gone.
    """
    total = before = index.total()
    gone: list[IndexRow] = []
    for row in rows:
        if total <= to_bytes:
            break
        _path(folder, row).unlink(missing_ok=True)
        total -= row.size
        gone.append(row)
    index.remove(row.key for row in gone)
    contexts = sum(row.is_context for row in gone)
    return Pruned(len(gone) - contexts, contexts, before - total)


def verify_files(folder: Path) -> Verified:
    """Reads every file to its end and removes those that are damaged; OSError."""
    pages = contexts = size = 0
    bad: list[str] = []
    for entry, status in _entries(folder):
        path = Path(entry.path)
        if not _NAME.fullmatch(path.name):
            continue
        try:
            read_head(path)
            with open_file(path) as file:
                file.read()
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            path.unlink(missing_ok=True)
            bad.append(f"{path.name}: {error}")
            continue
        size += status.st_size
        pages += path.suffix == PAGE
        contexts += path.suffix == CONTEXT
    return Verified(pages, contexts, size, tuple(bad))


def remove_damaged(path: Path, reason: DamagedFileError) -> None:
    """Removes the file, where that can be done, and says so."""
    logger.warning("context store: %s: damaged, removed: %s", path, reason)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _only_of(
    folder: Path, context_id: str, namespace: str | None, rows: Sequence[IndexRow]
) -> set[bytes]:
    """The keys of the contexts of this id, of their pages, and of all that follows these.

    Without pages that other contexts begin with. A page after one that is lost may follow these as
    well as anything: it goes too, since nobody finds it.
    """
    going: set[bytes] = set()
    staying: set[bytes] = set()
    waiting: list[bytes] = []
    for row, head in _contexts(folder, rows):
        keys = page_keys(head.parent, head.token_ids)
        if head.context_id == context_id and namespace in (None, head.namespace):
            going.add(row.key)
            waiting += keys
        else:
            staying.update(keys)
    after: dict[bytes, list[bytes]] = {}
    for row in rows:
        after.setdefault(row.parent, []).append(row.key)
    if going:
        here = {row.key for row in rows} | staying
        waiting += [parent for parent in after if not (is_root(parent) or parent in here)]
    while waiting:
        key = waiting.pop()
        if key not in going and key not in staying:
            going.add(key)
            waiting += after.get(key, [])
    return going


def _contexts(folder: Path, rows: Iterable[IndexRow]) -> Iterator[tuple[IndexRow, FileHead]]:
    """The contexts among these rows, by what their files say; without damaged ones."""
    for row in rows:
        if row.is_context:
            with contextlib.suppress(OSError, DamagedFileError):
                yield row, read_head(_path(folder, row))


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                if entry.is_file():
                    yield entry, entry.stat()


def _path(folder: Path, row: IndexRow) -> Path:
    """Where the file of a row is."""
    return folder / file_name(row.key, CONTEXT if row.is_context else PAGE)
