"""Keys and values on disk: pages by their chained keys, and the token ids of named contexts.

A folder of files (`stored_file.py`), each written whole or not at all, and an index
(`store_index.py`) that keeps them within a size and can be made anew from them. Several processes
may share the folder. A file that is damaged, or not what was asked for, is a miss and goes; what
cannot be written is one line in the log: nothing here fails a request. Not here: when pages are
written, and what stays in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fourbee.engine.kv_recipe import is_root, page_key
from fourbee.engine.store_index import StoreIndex, is_damage, open_index
from fourbee.engine.store_upkeep import (
    Pruned,
    StoredContext,
    Verified,
    chosen,
    followed_by,
    index_row,
    reconcile,
    removal_order,
    remove,
    remove_damaged,
    stored_contexts,
    verify_files,
)
from fourbee.engine.stored_file import (
    CONTEXT,
    PAGE,
    DamagedFileError,
    FileHead,
    StoredFile,
    file_name,
    open_file,
    sync_folder,
    write_file,
)
from fourbee.foundation.errors import CapacityError, FourbeeError, UsageError
from fourbee.model.hub import refuse_full_disk, store

logger = logging.getLogger(__name__)

T = TypeVar("T")
_SPARE = 20  # of a full store a twentieth is freed at once
_PRUNED = 100  # files that are removed in one transaction
_TOLD = (OSError, sqlite3.Error, CapacityError)  # are told in the log and fail no request
_USES, _USE_SECONDS = 1000, 30.0  # uses are noted together: so many, or after so long
# A wait for an index that another process holds is a step's time: after one, nothing is tried.
_PAUSE_SECONDS = 30.0
# Says that a folder is a store: files of others are never taken for its own.
_MARKER = "fourbee-contexts"
_MARKED = "Keys and values of texts, kept by fourbee; see `fourbee contexts --help`.\n"


def default_folder() -> Path:
    """`$FOURBEE_HOME/contexts`, in `~/.cache/fourbee` without that variable."""
    return store().parent / "contexts"


class ContextStore:
    """A store in a folder. Its methods may be called from any thread, none after `close`."""

    def __init__(self, folder: Path, max_bytes: int | None = None, make: bool = True) -> None:
        """Opens or makes it; `max_bytes` bounds its files: the least recently used go first.

        Raises UsageError where the folder cannot be used, and where it is no store and holds
        anything, or is not to be made.
        """
        self.folder = folder.expanduser()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # of the index and of what is noted for it
        self._used: dict[bytes, float] = {}
        self._noted = time.monotonic()
        self._paused_until = 0.0
        self._told: set[tuple[type, int]] = set()
        self._damaged: list[str] = []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim(make)
            self._index = open_index(self.folder, self._reconcile)
        except (OSError, sqlite3.Error) as error:
            reason = "not a folder" if self.folder.is_file() else _reason(error)
            raise UsageError(f"--context-store {folder}: {reason}", "context_store") from None
        with self._telling(), self._transaction() as index:
            self._make_room(index, 0, b"")

    def _claim(self, make: bool) -> None:
        marker = self.folder / _MARKER
        if marker.exists():
            return
        # Another process may just have made it one.
        if not make or (any(self.folder.iterdir()) and not marker.exists()):
            expected = "give a new folder" if make else "`fourbee serve --context-store` makes them"
            raise UsageError(
                f"--context-store {self.folder}: no context store; {expected}", "context_store"
            )
        with open(marker, "w", encoding="utf-8", opener=_private) as file:
            file.write(_MARKED)

    def get(self, key: bytes, parent: bytes, token_ids: Sequence[int]) -> bytes | None:
        """The page of these tokens after `parent`, verified; None where there is none."""
        return self._page(key, parent, token_ids, StoredFile.read)

    def get_into(
        self, key: bytes, parent: bytes, token_ids: Sequence[int], page: memoryview
    ) -> bool:
        """Reads it straight into `page` of just its size; where False, anything may be in it."""

        def fill(file: StoredFile) -> bool:
            file.read_into(page.cast("B"))
            return True

        return self._page(key, parent, token_ids, fill) or False

    def has(self, key: bytes) -> bool:
        """Whether there is a file of this page; whether it is whole, `get` finds out."""
        return os.path.exists(self.folder / file_name(key, PAGE))

    def put(
        self,
        key: bytes,
        parent: bytes,
        token_ids: Sequence[int],
        data: bytes | memoryview,
        namespace: str,
    ) -> bool:
        """Keeps a page, if it can be, and says whether it is here; if so already, it is only used.

        A page that follows another has to come after it: without that one it could not be found.
        """
        assert key == page_key(parent, token_ids)
        if self.has(key):
            self._use(key)
            return True
        if not is_root(parent) and not self.has(parent):
            return False
        return self._write(
            FileHead(parent, tuple(token_ids), namespace), memoryview(data).cast("B")
        )

    def remember(
        self, context_id: str, namespace: str, recipe_digest: bytes, token_ids: Sequence[int]
    ) -> bool:
        """Keeps the token ids of an owner's context, instead of those it had, if that can be."""
        assert is_root(recipe_digest)
        head = FileHead(recipe_digest, tuple(token_ids), namespace, context_id)
        return self._write(head, memoryview(b""))

    def recall(self, context_id: str, namespace: str) -> tuple[int, ...] | None:
        """The token ids of this owner's context; None where there is none."""

        def token_ids(file: StoredFile) -> tuple[int, ...]:
            if (file.head.namespace, file.head.context_id) != (namespace, context_id):
                raise DamagedFileError("the context of another name")
            return file.head.token_ids

        return self._read(FileHead(b"", (), namespace, context_id).key, CONTEXT, token_ids)

    def contexts(self) -> list[StoredContext]:
        """All contexts, the last used first; FourbeeError where the index cannot be read."""
        with self._reporting():
            with self._transaction() as index:
                rows = index.rows()
            found = stored_contexts(self.folder, rows)
            return sorted(found, key=lambda context: -context.last_use)

    def info(self, context_id: str) -> list[StoredContext]:
        """The contexts of this id, of whichever owners; FourbeeError as above."""
        return [context for context in self.contexts() if context.context_id == context_id]

    def prune(
        self,
        *,
        older_than: float | None = None,
        namespace: str | None = None,
        context_id: str | None = None,
        to_bytes: int = 0,
    ) -> Pruned:
        """Removes what all of the given conditions fit: everything, where there are none.

        older_than: not used for so many seconds, nor anything that follows it. context_id: the
        token ids, the pages that no other context begins with, and what follows those, or a page
        that is lost. to_bytes: only until the store is no larger, the least recently used first.
        Raises FourbeeError.
        """
        gone = Pruned(0, 0, 0)
        with self._reporting():
            with self._transaction() as index:
                going = chosen(self.folder, index.rows(), older_than, namespace, context_id)
            while going:  # a few at a time: others wait meanwhile
                with self._transaction() as index:
                    gone += remove(self.folder, index, going[:_PRUNED], to_bytes)
                del going[:_PRUNED]
        return gone

    def verify(self) -> Verified:
        """Reads every file, removes those that are damaged, and makes the index agree.

        What was found damaged when the store was opened is told too. Raises FourbeeError.
        """
        with self._reporting():
            verified = verify_files(self.folder)
            with self._lock:
                self._damaged += verified.bad
                self._reconcile(self._current(), thorough=True)
                bad, self._damaged = tuple(self._damaged), []
            return replace(verified, bad=bad)

    def close(self) -> None:
        """Notes the last uses and ends."""
        with contextlib.suppress(OSError, sqlite3.Error), self._transaction():
            sync_folder(self.folder)
        self._index.close()

    def _page(
        self, key: bytes, parent: bytes, token_ids: Sequence[int], take: Callable[[StoredFile], T]
    ) -> T | None:
        wanted = (parent, tuple(token_ids))

        def checked(file: StoredFile) -> T:
            if (file.head.parent, file.head.token_ids) != wanted:
                raise DamagedFileError("the page of other tokens")
            return take(file)

        return self._read(key, PAGE, checked)

    def _read(self, key: bytes, kind: str, take: Callable[[StoredFile], T]) -> T | None:
        path = self.folder / file_name(key, kind)
        try:
            with open_file(path) as file:
                taken = take(file)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            remove_damaged(path, error)
            with self._telling(), self._transaction() as index:
                index.remove([key])
            return None
        except OSError as error:
            self._tell(error)
            return None
        self._use(key)
        return taken

    def _write(self, head: FileHead, data: memoryview) -> bool:
        if time.monotonic() < self._paused_until:
            return False
        path, size = self.folder / head.name, head.size + data.nbytes
        try:
            refuse_full_disk(path, size)
            with self._transaction() as index:
                self._make_room(index, size, head.parent)
            write_file(path, head, data)
            # Should this process end here, the next one that opens the store takes the file in.
            with self._transaction() as index:
                index.add([index_row(head, size, time.time())])
        except _TOLD as error:
            self._tell(error)
            return False
        return True

    def _use(self, key: bytes) -> None:
        with self._lock:
            self._used[key] = time.time()
            now = time.monotonic()
            waiting = len(self._used) >= _USES or now - self._noted > _USE_SECONDS
            waiting &= now >= self._paused_until
        if waiting:
            with self._telling(), self._transaction():
                pass

    def _make_room(self, index: StoreIndex, needed: int, parent: bytes) -> None:
        """Removes what is least worth keeping where `needed` more bytes would be too many.

        Never what a page after `parent` follows. Raises CapacityError, before anything is removed.
        """
        if self._max_bytes is None or index.total() + needed <= self._max_bytes:
            return
        rows = index.rows()
        before = followed_by(parent, rows)
        if sum(row.size for row in rows if row.key in before) + needed > self._max_bytes:
            raise CapacityError(f"{self._max_bytes} bytes cannot hold a page and those before it")
        order = [row for row, _ in removal_order(rows) if row.key not in before]
        to_bytes = self._max_bytes - self._max_bytes // _SPARE - needed
        remove(self.folder, index, order, to_bytes)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[StoreIndex]:
        """The index, with all uses noted. Raises OSError, sqlite3.Error."""
        with self._lock:
            used, self._used, self._noted = self._used, {}, time.monotonic()
            index = self._current()
            try:
                with index.transaction():
                    index.touch(used)
                    yield index
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    index.close()  # so that it is made anew the next time
                raise

    def _current(self) -> StoreIndex:
        """The index, opened again where it was lost or replaced."""
        if not self._index.is_current:
            self._index.close()
            self._index = open_index(self.folder, self._reconcile)
        return self._index

    def _reconcile(self, index: StoreIndex, thorough: bool = False) -> None:
        self._damaged += reconcile(self.folder, index, thorough=thorough)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong within is told in the log, once a kind, and then forgotten."""
        try:
            yield
        except _TOLD as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
        kind = (type(error), getattr(error, "errno", None) or 0)
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("context store %s: %s (told once)", self.folder, _reason(error))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise FourbeeError(f"context store {self.folder}: {error}") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
