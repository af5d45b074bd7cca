"""The index of a context store: sizes, last use, parents and owners of its files, in SQLite.

It only keeps account: whether a file is there, and whole, the file itself says. With an index
nothing is lost but when files were last used, so that it may be damaged, deleted, or replaced by
another process: `open_index` makes it anew, and `store_upkeep.reconcile` fills it from the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

NAME, LOCK = "index.sqlite", "index.lock"
_FORMAT = 1
_BUSY_SECONDS = 2.0  # longest wait for another process's transaction
_OPEN_SECONDS = 30.0  # and for another that opens the index and may fill it from the files
# What an index that is whole can meet with; any other error says that it is not.
_OUTSIDE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_MISUSE,
}  # fmt: skip
# The check is for `integrity_check`: a damaged record may hold values of any type.
_TABLE = f"""
CREATE TABLE files (key BLOB PRIMARY KEY, parent BLOB NOT NULL, namespace BLOB NOT NULL,
                    is_context INTEGER NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL,
                    CHECK (typeof(key) || typeof(parent) || typeof(namespace) || typeof(is_context)
                           || typeof(size) || typeof(used) = 'blobblobblobintegerintegerreal')
                   ) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
"""


@dataclass(frozen=True)
class IndexRow:
    """A page or a context."""

    key: bytes
    parent: bytes
    namespace: bytes  # as `stored_file.text_bytes` has it
    is_context: bool
    size: int  # bytes, with the head
    used: float  # seconds since 1970


class StoreIndex:
    """A connection to the index; for one thread at a time. All methods raise `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it; raises OSError, sqlite3.Error, and `is_damage` holds for some."""
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's others take its mode
        self._path = path
        self._db = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._identity: tuple[int, int] | None = _identity(path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            [version] = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLE} COMMIT;")
                return
            [found] = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            if version != _FORMAT or found != "ok":
                raise _damage("damaged, or of another version")
        except UnicodeDecodeError:  # of a message about what it holds
            self._db.close()
            raise _damage("damaged") from None
        except BaseException:
            self._db.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether it is open, and the file is still the one that was opened."""
        try:
            return _identity(self._path) == self._identity
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is done within; other processes wait meanwhile."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends it itself after some errors
                self._db.execute("ROLLBACK")
            raise

    def rows(self) -> list[IndexRow]:
        """All files; a time of use is never in the future."""
        columns = "key, parent, namespace, is_context, size, MAX(0.0, MIN(used, ?))"
        found = self._db.execute(f"SELECT {columns} FROM files", (time.time(),))
        return [IndexRow(*row) for row in found]

    def total(self) -> int:
        """Bytes of all files together."""
        [size] = self._db.execute("SELECT IFNULL(SUM(size), 0) FROM files").fetchone()
        return int(size)

    def add(self, rows: Iterable[IndexRow]) -> None:
        """Takes files in, in the place of what it had of them."""
        values = [astuple(row) for row in rows]
        self._db.executemany("REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", values)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Forgets files."""
        self._db.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in keys])

    def touch(self, used: Mapping[bytes, float]) -> None:
        """Notes when files were used last; those that it does not have are left out."""
        values = [(when, key) for key, when in used.items()]
        self._db.executemany("UPDATE files SET used = ? WHERE key = ?", values)

    def close(self) -> None:
        """Ends the connection."""
        self._identity = None
        self._db.close()


def open_index(folder: Path, fill: Callable[[StoreIndex], None]) -> StoreIndex:
    """The index of a folder, after `fill` made it agree with the files.

    Made anew where it is damaged; no other process opens it meanwhile. Raises OSError and
    sqlite3.Error.
    """
    folder.stat()  # the lock would make a folder that has vanished
    with FileLock(folder / LOCK, timeout=_OPEN_SECONDS, mode=0o600):
        try:
            return _filled(folder / NAME, fill)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            logger.warning("context store: %s: %s: made anew from the files", folder / NAME, error)
        for suffix in ("", "-wal", "-shm"):
            (folder / f"{NAME}{suffix}").unlink(missing_ok=True)
        return _filled(folder / NAME, fill)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the error says that the index is not whole."""
    code = getattr(error, "sqlite_errorcode", None)  # none in errors of the module itself
    return code is not None and code & 0xFF not in _OUTSIDE  # above it is more about the kind


def _filled(path: Path, fill: Callable[[StoreIndex], None]) -> StoreIndex:
    index = StoreIndex(path)
    try:
        fill(index)
    except BaseException:
        index.close()
        raise
    return index


def _damage(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
