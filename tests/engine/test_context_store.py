"""The context store gives back what was put, or nothing, whatever happened meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fourbee.engine import context_store, store_index
from fourbee.engine.context_store import ContextStore, default_folder
from fourbee.engine.kv_recipe import page_key
from fourbee.engine.store_upkeep import Pruned
from fourbee.engine.stored_file import DamagedFileError, FileHead, open_file, write_file
from fourbee.foundation.errors import UsageError

from .stored_pages import FILE_BYTES, ROOT, files, get, pages_of, put, stored, text
from .test_kv_recipe import CHANGED, RECIPE

LONG = pages_of(text("long", 8))
FIRST, SECOND = LONG[:2]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "contexts"


@pytest.fixture
def opened(folder) -> Iterator[Callable[..., ContextStore]]:
    """Opens the store of `folder`; all are closed after the test."""
    stores: list[ContextStore] = []

    def open_store(max_bytes: int | None = None) -> ContextStore:
        stores.append(ContextStore(folder, max_bytes))
        return stores[-1]

    yield open_store
    for one in stores:
        one.close()


@pytest.fixture
def told(caplog) -> Callable[[], list[str]]:
    """The warnings since the last call."""
    caplog.set_level(logging.WARNING, "fourbee")

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return lines


def root(number: int) -> bytes:
    """The digest of another recipe."""
    return bytes(31) + bytes([number + 1])


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in [*files(folder), *files(folder, ".context")])


def indexed(folder: Path, column: str = "size") -> dict[bytes, float]:
    """What the index has of each file, read by nobody's code but SQLite's."""
    database = sqlite3.connect(folder / "index.sqlite")
    found = dict(database.execute(f"SELECT key, {column} FROM files").fetchall())
    database.close()
    return found


def agrees(folder: Path) -> bool:
    """Whether the index has the files, all and alone."""
    there = [*files(folder), *files(folder, ".context")]
    return indexed(folder) == {bytes.fromhex(path.stem): path.stat().st_size for path in there}


def test_pages_come_back_after_a_restart(opened, folder) -> None:
    store = opened()
    assert stored(store, LONG) == [False] * 8
    put(store, LONG, "alice")
    assert stored(store, LONG) == [True] * 8 and agrees(folder)
    store.close()
    again = opened()
    assert stored(again, LONG) == [True] * 8
    assert [again.has(page.key) for page in LONG] == [True] * 8
    assert not again.has(page_key(LONG[-1].key, [1]))
    page = bytearray(len(SECOND.data))
    assert again.get_into(SECOND.key, SECOND.parent, SECOND.token_ids, memoryview(page))
    assert page == SECOND.data


def test_a_page_is_written_once(opened, folder) -> None:
    store = opened()
    put(store, [FIRST])
    [inode] = [path.stat().st_ino for path in files(folder)]
    put(store, [FIRST])
    assert [path.stat().st_ino for path in files(folder)] == [inode]


def test_pages_are_given_as_any_buffer(opened) -> None:
    np = pytest.importorskip("numpy")
    store, numbers = opened(), np.arange(600, dtype=np.float32).reshape(2, 300)
    store.put(FIRST.key, FIRST.parent, FIRST.token_ids, memoryview(numbers), "")
    assert get(store, FIRST) == numbers.tobytes()
    there = np.zeros_like(numbers)
    assert store.get_into(FIRST.key, FIRST.parent, FIRST.token_ids, memoryview(there))
    assert (there == numbers).all()


def test_a_page_of_another_size_than_the_callers_is_a_miss(opened, told) -> None:
    store = opened()
    put(store, [FIRST])
    page = memoryview(bytearray(len(FIRST.data) - 32))
    assert not store.get_into(FIRST.key, FIRST.parent, FIRST.token_ids, page)
    assert len(told()) == 1 and not store.has(FIRST.key)


@pytest.mark.parametrize("name", CHANGED)
def test_another_recipe_always_misses(opened, name) -> None:
    token_ids, store = text("of a recipe", 3), opened()
    put(store, pages_of(token_ids, RECIPE.digest()))
    assert stored(store, pages_of(token_ids, RECIPE.digest())) == [True] * 3
    other = replace(RECIPE, **{name.split()[0]: CHANGED[name]})
    assert stored(store, pages_of(token_ids, other.digest())) == [False] * 3


def test_only_the_owner_can_read(opened, folder) -> None:
    before = os.umask(0)
    try:
        store = opened()
        put(store, LONG)
        store.remember("chat", "alice", ROOT, (1, 2))
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"} <= modes.keys()


def test_contexts_are_their_owners(opened) -> None:
    store = opened()
    store.remember("chat", "alice", ROOT, (1, 2, 3))
    store.remember("chat", "bob", ROOT, (4, 5))
    store.remember("chat", "", ROOT, ())
    # Neither may run into the other.
    store.remember("b", "a", ROOT, (6,))
    store.remember("", "ab", ROOT, (7,))
    store.remember("\ud800 \0 你好", "\n", ROOT, (2**32 - 1,))
    for one in (store, opened()):
        assert one.recall("chat", "alice") == (1, 2, 3)
        assert one.recall("chat", "bob") == (4, 5)
        assert one.recall("chat", "") == ()
        assert one.recall("b", "a") == (6,) and one.recall("", "ab") == (7,)
        assert one.recall("ab", "") is None and one.recall("chat", "carol") is None
        assert one.recall("\ud800 \0 你好", "\n") == (2**32 - 1,)
    store.remember("chat", "alice", ROOT, (9,))
    assert store.recall("chat", "alice") == (9,) and store.recall("chat", "bob") == (4, 5)


def test_a_context_of_many_tokens(opened) -> None:
    token_ids = tuple(range(262_144))
    opened().remember("book", "", ROOT, token_ids)
    assert opened().recall("book", "") == token_ids


# What a damaged file is.


def whole(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return file.read() is not None and file.head.name == path.name
    except DamagedFileError:
        return False


def test_no_bit_of_a_file_can_be_flipped_unseen(tmp_path) -> None:
    heads = [FileHead(ROOT, FIRST.token_ids, "alice"), FileHead(ROOT, (1, 2), "alice", "chat")]
    for head, data in zip(heads, (b"keys and values" * 9, b""), strict=True):
        path = tmp_path / head.name
        write_file(path, head, memoryview(data))
        written = path.read_bytes()
        assert whole(path) and len(written) == head.size + len(data) and head.size % 4096 == 0
        with path.open("r+b", buffering=0) as file:
            for offset, byte in enumerate(written):
                os.pwrite(file.fileno(), bytes([byte ^ (1 << offset % 8)]), offset)
                assert not whole(path), offset
                os.pwrite(file.fileno(), bytes([byte]), offset)
        assert whole(path)


def test_no_file_can_be_cut_or_lengthened_unseen(tmp_path) -> None:
    head = FileHead(ROOT, FIRST.token_ids, "alice")
    path = tmp_path / head.name
    write_file(path, head, memoryview(FIRST.data))
    written = path.read_bytes()
    for length in {0, 1, 8, 12, 67, 68, 69, 300, 4095, 4096, 4097, len(written) - 1}:
        path.write_bytes(written[:length])
        assert not whole(path), length
    path.write_bytes(written + b"\0")
    assert not whole(path)


def test_a_head_that_claims_terabytes_allocates_none(tmp_path) -> None:
    head = FileHead(ROOT, (1,), "")
    path = tmp_path / head.name
    write_file(path, head, memoryview(b"data"))
    written = bytearray(path.read_bytes())
    for field in (16, 20, 24, 28):  # tokens, namespace, context id, data
        claimed = written.copy()
        claimed[field : field + 4] = b"\xff" * 4
        path.write_bytes(claimed)
        assert not whole(path)


DAMAGE = {
    "the magic": lambda data: b"X" + data[1:],
    "the tokens": lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:],
    "the padding": lambda data: data[:4000] + b"\1" + data[4001:],
    "the data": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "the end": lambda data: data[:-1],
    "everything": lambda data: b"",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_page_is_a_miss_and_goes(opened, folder, told, what) -> None:
    store = opened()
    put(store, LONG)
    path = folder / f"{SECOND.key.hex()}.page"
    path.write_bytes(DAMAGE[what](path.read_bytes()))
    assert stored(store, LONG) == [True, False] + [True] * 6
    [line] = told()
    assert line.startswith(f"context store: {path}: damaged, removed: ")
    assert not path.exists() and not store.has(SECOND.key) and agrees(folder)
    put(store, LONG)
    assert stored(store, LONG) == [True] * 8 and not told()


def test_a_page_that_the_disk_cannot_read_is_damaged(opened, folder, told, monkeypatch) -> None:
    store = opened()
    put(store, [FIRST])
    with monkeypatch.context() as patch:
        patch.setattr("fourbee.engine.stored_file._read_head", fails(errno.EIO))
        assert get(store, FIRST) is None
    path = folder / f"{FIRST.key.hex()}.page"
    assert told() == [f"context store: {path}: damaged, removed: the disk cannot read it"]
    put(store, [FIRST])
    assert get(store, FIRST) == FIRST.data


def test_a_page_that_may_not_be_read_is_a_miss_and_stays(opened, folder, told, monkeypatch) -> None:
    store = opened()
    put(store, [FIRST])
    with monkeypatch.context() as patch:
        patch.setattr("fourbee.engine.stored_file._read_head", fails(errno.EACCES))
        assert get(store, FIRST) is None and get(store, FIRST) is None
    assert told() == [f"context store {folder}: Permission denied (told once)"]
    assert get(store, FIRST) == FIRST.data


def test_what_only_has_the_name_of_a_page_is_left_alone(opened, folder, told) -> None:
    put(opened(), LONG)
    odd = folder / f"{'1' * 64}.page"
    odd.mkdir()
    store = opened(3 * FILE_BYTES)
    assert store.verify().bad == () and odd.is_dir() and not told()
    assert store.prune().pages == 2 and odd.is_dir()


def test_a_damaged_context_is_forgotten(opened, folder, told) -> None:
    store = opened()
    store.remember("chat", "", ROOT, (1, 2, 3))
    [path] = files(folder, ".context")
    path.write_bytes(DAMAGE["the tokens"](path.read_bytes()))
    assert store.recall("chat", "") is None and len(told()) == 1 and not path.exists()


def test_files_under_each_others_names_are_misses(opened, folder, told) -> None:
    store = opened()
    put(store, LONG)
    store.remember("chat", "alice", ROOT, (1, 2, 3))
    store.remember("chat", "bob", ROOT, (4, 5, 6))
    for one, two in (files(folder)[:2], files(folder, ".context")):
        kept = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(kept)
    assert sum(stored(store, LONG)) == 6
    assert store.recall("chat", "alice") is None and store.recall("chat", "bob") is None
    assert len(told()) == 4 and len(files(folder)) == 6 and not files(folder, ".context")


def test_a_page_under_the_name_of_a_context_is_a_miss(opened, folder, told) -> None:
    store = opened()
    put(store, [FIRST])
    store.remember("chat", "", ROOT, FIRST.token_ids)
    [context] = files(folder, ".context")
    shutil.copy(files(folder)[0], context)
    assert store.recall("chat", "") is None and len(told()) == 1


def test_verify_reads_everything_and_says_what_went(opened, folder, told, monkeypatch) -> None:
    uses(monkeypatch)(100.0)
    store = opened()
    put(store, LONG)
    store.remember("chat", "", ROOT, (1, 2, 3))
    assert store.verify().bad == ()
    good = files(folder)
    good[0].write_bytes(DAMAGE["the data"](good[0].read_bytes()))
    good[1].write_bytes(DAMAGE["the padding"](good[1].read_bytes()))
    shutil.copy(good[2], folder / f"{'0' * 64}.page")
    (folder / "notes.txt").write_text("not of the store")
    verified = store.verify()
    assert (verified.pages, verified.contexts, verified.bytes) == (6, 1, sizes(folder))
    assert [line.split(".page: ")[0] for line in sorted(verified.bad)] == sorted(
        ["0" * 64, good[0].stem, good[1].stem]
    )
    assert not told() and agrees(folder)
    assert set(indexed(folder, "used").values()) == {100.0}
    assert (folder / "notes.txt").exists() and store.verify().bad == ()
    good[2].write_bytes(b"damaged")
    assert [line[:64] for line in opened().verify().bad] == [good[2].stem]


# The index is made anew from the files.


def remove_index(folder: Path) -> None:
    for path in folder.glob("index.sqlite*"):
        path.unlink()


def other_version(folder: Path) -> None:
    database = sqlite3.connect(folder / "index.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()


def wrong_rows(folder: Path) -> None:
    database = sqlite3.connect(folder / "index.sqlite")
    database.execute("UPDATE files SET size = size + 1000000000 WHERE NOT is_context")
    database.execute("DELETE FROM files WHERE is_context")
    database.execute("INSERT INTO files VALUES (x'00', x'01', x'', 0, 5000, 1.0)")
    database.commit()
    database.close()


LOSSES = {
    "deleted": remove_index,
    "deleted but for the log": lambda folder: (folder / "index.sqlite").unlink(),
    "garbage": lambda folder: (folder / "index.sqlite").write_bytes(os.urandom(50_000)),
    "text": lambda folder: (folder / "index.sqlite").write_text("not a database"),
    "emptied": lambda folder: (folder / "index.sqlite").write_bytes(b""),
    "cut": lambda folder: os.truncate(folder / "index.sqlite", 5000),
    "zeros within": lambda folder: zeros(folder / "index.sqlite"),
    "another version": other_version,
    "wrong rows": wrong_rows,
}


def zeros(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(4096) + data[8192:])


def filled(store: ContextStore) -> None:
    put(store, LONG, "alice")
    store.remember("chat", "alice", ROOT, (*text("long", 8), 7))


@pytest.mark.parametrize("open_meanwhile", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_but_the_index_is_lost_with_the_index(
    opened, folder, told, loss, open_meanwhile
) -> None:
    store = opened()
    filled(store)
    store.close()
    if open_meanwhile:
        store = opened()
        assert stored(store, LONG) == [True] * 8
    LOSSES[loss](folder)
    if not open_meanwhile:
        store = opened()
    assert stored(store, LONG) == [True] * 8 and store.recall("chat", "alice") is not None
    more = pages_of(text("more", 2))
    put(store, more, "bob")
    if open_meanwhile:
        put(store, more, "bob")  # the first time may have found that it is damaged
        store.close()
        store = opened()  # one that is overwritten in its place may be found so only now
    assert stored(store, more) == [True] * 2
    assert agrees(folder) and len(indexed(folder)) == 8 + 2 + 1
    [context] = store.contexts()
    assert (context.pages, context.pages_of_all, context.namespace) == (8, 8, "alice")
    assert store.prune(namespace="alice").pages == 8
    assert stored(store, LONG) == [False] * 8 and agrees(folder)


def test_an_index_with_any_bit_flipped_costs_nothing(opened, folder) -> None:
    store = opened()
    filled(store)
    store.close()
    whole_index, drawn = (folder / "index.sqlite").read_bytes(), random.Random(5)
    for _ in range(60):
        damaged = bytearray(whole_index)
        for _ in range(drawn.choice([1, 1, 20])):
            damaged[drawn.randrange(len(damaged))] ^= 1 << drawn.randrange(8)
        (folder / "index.sqlite").write_bytes(damaged)
        store = ContextStore(folder, 12 * FILE_BYTES)
        assert stored(store, LONG) == [True] * 8 and store.recall("chat", "alice") is not None
        assert [context.pages for context in store.contexts()] == [8]
        assert store.prune(namespace="nobody").bytes == 0
        store.close()
        assert agrees(folder)


def test_an_index_that_another_process_replaced_is_opened_anew(opened, folder) -> None:
    one = opened()
    put(one, LONG[:4])
    remove_index(folder)
    two = opened()
    put(two, LONG)
    put(one, pages_of(text("more", 2)))
    assert agrees(folder) and len(indexed(folder)) == 10
    one.close()  # which must not take the log of the new index with it
    put(two, pages_of(text("still more", 2)))
    two.close()
    assert agrees(folder) and len(indexed(folder)) == 12


def test_an_index_found_damaged_meanwhile_is_opened_anew(opened, folder, told, monkeypatch) -> None:
    store = opened()
    put(store, LONG[:4])
    (folder / "index.sqlite").write_bytes(b"garbage" * 1000)

    def damaged(*_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_index.StoreIndex, "touch", damaged)
        put(store, LONG)
    assert told() == [f"context store {folder}: database disk image is malformed (told once)"]
    put(store, LONG)
    assert stored(store, LONG) == [True] * 8 and agrees(folder)


def test_the_time_of_last_use_is_the_files_where_the_index_is_lost(opened, folder) -> None:
    store = opened()
    put(store, LONG)
    store.close()
    for number, path in enumerate(files(folder)):
        os.utime(path, (number, number))
    remove_index(folder)
    opened().close()
    assert indexed(folder, "used") == {
        bytes.fromhex(path.stem): n for n, path in enumerate(files(folder))
    }


def test_what_lost_its_writer_goes_at_the_next_opening_but_one(opened, folder) -> None:
    opened().close()
    old, new = folder / ".fourbee-old.tmp", folder / ".fourbee-new.tmp"
    for path in (old, new):
        path.write_bytes(b"half a page")
    os.utime(old, (1, 1))
    opened()
    assert not old.exists() and new.exists()  # which may still be written


# Within a size.


def uses(monkeypatch) -> Callable[[float], None]:
    """Sets the clock of the store."""
    now = [0.0]
    for module in ("context_store", "store_upkeep"):
        monkeypatch.setattr(f"fourbee.engine.{module}.time.time", lambda: now[0])
    return lambda time: now.__setitem__(0, time)


def test_the_store_keeps_to_its_size(opened, folder) -> None:
    limit = 20 * FILE_BYTES
    store = opened(limit)
    for number in range(60):
        put(store, pages_of(text(number, 3)))
        store.remember(f"chat {number}", "", ROOT, text(number, 3))
        assert sizes(folder) <= limit and agrees(folder)
    assert sizes(folder) > limit // 2
    assert stored(store, pages_of(text(59, 3))) == [True] * 3
    assert store.recall("chat 59", "") is not None and store.recall("chat 0", "") is None


def test_the_least_recently_used_goes_first_and_no_page_before_what_follows_it(
    opened, folder, monkeypatch
) -> None:
    clock = uses(monkeypatch)
    texts = [pages_of(text(number, 4)) for number in range(5)]
    store = opened(17 * FILE_BYTES)
    for number, pages in enumerate(texts[:4]):
        clock(number)
        put(store, pages)
    clock(10)
    assert get(store, texts[0][-1]) is not None  # the whole text is in use with its last page
    clock(11)
    put(store, texts[4])
    there = [stored(store, pages) for pages in texts]
    assert there[0] == there[4] == [True] * 4
    assert there[1] != [True] * 4
    for found in there:  # what is left of a text are its first pages
        assert found == sorted(found, reverse=True)


def test_a_text_larger_than_the_store_keeps_its_beginning(opened, folder, told) -> None:
    pages = pages_of(text("a long one", 40))
    store = opened(10 * FILE_BYTES)
    put(store, pages_of(text("another", 5)))
    put(store, pages)
    found = stored(store, pages)
    assert found == sorted(found, reverse=True) and sum(found) >= 9
    assert sizes(folder) <= 10 * FILE_BYTES
    [line] = told()
    assert line == (
        f"context store {folder}: {10 * FILE_BYTES} bytes cannot hold a page and those before it "
        "(told once)"
    )
    put(store, [FIRST])  # others go on
    assert store.has(FIRST.key)


def test_a_page_is_kept_only_after_the_one_that_it_follows(opened) -> None:
    store = opened()
    assert not store.put(SECOND.key, SECOND.parent, SECOND.token_ids, SECOND.data, "")
    assert not store.has(SECOND.key)
    for page in (FIRST, SECOND, FIRST):
        assert store.put(page.key, page.parent, page.token_ids, page.data, "")


def test_a_smaller_size_is_kept_from_the_start(opened, folder) -> None:
    put(opened(), LONG)
    store = opened(3 * FILE_BYTES)
    assert sizes(folder) <= 3 * FILE_BYTES and agrees(folder)
    assert stored(store, LONG)[:2] == [True, True]
    with_none = ContextStore(folder, 0)
    put(with_none, LONG)
    with_none.remember("chat", "", ROOT, (1,))
    assert not files(folder) and not files(folder, ".context")
    with_none.close()


def test_uses_are_noted_when_many_have_come_together(opened, folder, monkeypatch) -> None:
    clock, store = uses(monkeypatch), opened()
    put(store, LONG)
    monkeypatch.setattr(context_store, "_USES", 8)
    clock(1000)
    stored(store, LONG)
    assert set(indexed(folder, "used").values()) == {1000.0}


# Pruning.


def test_prune_by_owner_age_and_size(opened, folder, monkeypatch) -> None:
    clock, store = uses(monkeypatch), opened()
    day = 86_400.0
    texts = {name: pages_of(text(name, 3), root(n)) for n, name in enumerate("abc")}
    for number, (name, pages) in enumerate(texts.items()):
        clock(number * day)
        put(store, pages, name)
        store.remember("chat", name, root(number), text(name, 3))
    clock(3 * day)
    assert get(store, texts["a"][1]) is not None  # and so the one before it
    gone = store.prune(older_than=1.5 * day)
    assert (gone.pages, gone.contexts) == (1 + 3, 2)
    assert [stored(store, texts[name]) for name in "abc"] == [
        [True, True, False], [False] * 3, [True] * 3,
    ]  # fmt: skip
    assert store.recall("chat", "a") is None and store.recall("chat", "c") is not None
    gone = store.prune(namespace="c", older_than=day)
    assert (gone.pages, gone.contexts, gone.bytes) == (0, 0, 0)
    before = sizes(folder)
    gone = store.prune(namespace="c")
    assert (gone.pages, gone.contexts) == (3, 1) and gone.bytes == before - sizes(folder)
    assert stored(store, texts["a"]) == [True, True, False]
    put(store, texts["b"])
    gone = store.prune(to_bytes=sizes(folder) - 1)
    assert (gone.pages, gone.contexts) == (1, 0) and agrees(folder)
    store.prune()
    assert not files(folder) and indexed(folder) == {} and store.contexts() == []


def test_a_pruned_context_takes_what_is_its_own(opened, folder) -> None:
    store, common = opened(), text("common", 2)[:128]
    mine, yours = common + text("mine", 3), common + text("yours", 3)
    branch = (*mine[:192], *text("branch", 2))  # another answer, of no name
    for token_ids in (mine, yours, branch):
        put(store, pages_of(token_ids))
    store.remember("mine", "", ROOT, mine)
    store.remember("yours", "", ROOT, yours)
    store.remember("mine", "bob", root(1), mine)
    gone = store.prune(context_id="mine", namespace="")
    assert (gone.pages, gone.contexts) == (3 + 2, 1)
    assert stored(store, pages_of(yours)) == [True] * 5
    assert stored(store, pages_of(mine)) == [True, True, False, False, False]
    assert stored(store, pages_of(branch)) == [True, True, False, False, False]
    assert [(one.context_id, one.namespace) for one in store.info("mine")] == [("mine", "bob")]
    assert store.prune(context_id="nobody's").contexts == 0
    gone = store.prune(context_id="yours")
    assert (gone.pages, gone.contexts) == (5, 1) and not files(folder)


def test_a_pruned_context_takes_what_follows_a_page_that_was_lost(opened, folder) -> None:
    """Another answer's rest would stay on disk, where nobody finds it but who reads the disk."""
    store, mine = opened(), text("mine", 3)
    branch, yours = mine[:128] + text("branch", 3), mine[:64] + text("yours", 4)
    other = text("other", 3)  # of no name, and it follows nothing of theirs
    for token_ids in (mine, branch, yours, other):
        put(store, pages_of(token_ids))
    store.remember("mine", "", ROOT, mine)
    store.remember("yours", "", ROOT, yours)
    for lost in (pages_of(branch)[3], pages_of(yours)[3]):
        path = folder / f"{lost.key.hex()}.page"
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
        assert get(store, lost) is None and not path.exists()
    assert store.prune(context_id="nobody's") == Pruned(0, 0, 0)
    gone = store.prune(context_id="mine")
    assert (gone.pages, gone.contexts) == (2 + 2, 1)
    assert stored(store, pages_of(branch)) == [True, False, False, False, False]
    assert stored(store, pages_of(yours)) == [True, True, True, False, True]
    assert stored(store, pages_of(other)) == [True] * 3


def test_contexts_say_what_is_stored_of_them(opened, folder, monkeypatch) -> None:
    clock, store = uses(monkeypatch), opened()
    clock(100.0)
    put(store, LONG)
    (folder / f"{LONG[3].key.hex()}.page").write_bytes(b"damaged")
    assert get(store, LONG[3]) is None
    store.remember("old", "alice", ROOT, text("long", 8))
    clock(200.0)
    store.remember("new", "", root(1), (1, 2, 3))
    new, old = store.contexts()
    assert (new.context_id, new.namespace, new.tokens, new.pages, new.pages_of_all) == (
        "new", "", 3, 0, 0,
    )  # fmt: skip
    assert (old.context_id, old.namespace, old.tokens) == ("old", "alice", 8 * 64 + 5)
    assert (old.pages, old.pages_of_all, old.last_use) == (3, 8, 100.0)
    assert (old.recipe, old.bytes) == (ROOT.hex(), 3 * FILE_BYTES)
    assert store.info("old") == [old] and store.info("nobody's") == []


# What cannot be written is told once and costs no request.


def fails(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("where", "code"),
    [("os.fsync", errno.ENOSPC), ("tempfile.mkstemp", errno.EROFS), ("os.replace", errno.EIO)],
)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(
    opened, folder, told, monkeypatch, where, code
) -> None:
    store = opened()
    put(store, [FIRST])
    with monkeypatch.context() as patch:
        patch.setattr(f"fourbee.engine.stored_file.{where}", fails(code))
        put(store, LONG)
        store.remember("chat", "", ROOT, (1, 2))
    assert told() == [f"context store {folder}: {os.strerror(code)} (told once)"]
    assert stored(store, LONG) == [True] + [False] * 7 and store.recall("chat", "") is None
    assert len(files(folder)) == 1 and agrees(folder)
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    put(store, LONG)
    assert stored(store, LONG) == [True] * 8 and not told()


def test_a_full_disk_is_left_some_room(opened, folder, told, monkeypatch) -> None:
    store = opened()
    monkeypatch.setattr("fourbee.model.hub.SPARE_BYTES", 10**18)
    put(store, LONG)
    [line] = told()
    assert line.endswith("GB are to stay free (told once)") and not files(folder)


def test_a_limit_of_the_system_on_files_is_one_line(opened, folder, told) -> None:
    resource = pytest.importorskip("resource")
    store = opened()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        put(store, LONG)
        store.remember("chat", "", ROOT, (1, 2))
        stored(store, LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 1 <= len(told()) <= 3  # of the file, of the index
    put(store, LONG)
    assert stored(store, LONG) == [True] * 8 and store.verify().bad == ()


def test_a_folder_that_vanishes_is_one_line(opened, folder, told) -> None:
    store = opened()
    put(store, LONG)
    shutil.rmtree(folder)
    assert stored(store, LONG) == [False] * 8 and store.recall("chat", "") is None
    put(store, LONG)
    store.remember("chat", "", ROOT, (1, 2))
    store.close()
    assert told() == [f"context store {folder}: No such file or directory (told once)"]
    assert not folder.exists()  # it may have been another disk's


def test_a_file_in_the_place_of_the_folder_is_one_line(opened, folder, told) -> None:
    store = opened()
    shutil.rmtree(folder)
    folder.write_text("")
    put(store, LONG)
    assert stored(store, LONG) == [False] * 8
    assert told() == [f"context store {folder}: Not a directory (told once)"]


def test_an_index_that_another_process_holds_is_one_line(opened, folder, told, monkeypatch) -> None:
    monkeypatch.setattr(store_index, "_BUSY_SECONDS", 0.05)
    store = opened()
    other = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    put(store, LONG)
    store.remember("chat", "", ROOT, (1, 2))
    assert told() == [f"context store {folder}: database is locked (told once)"]
    other.execute("ROLLBACK")
    other.close()
    # A wait is a step's time: after one, nothing is tried for a while.
    put(store, LONG)
    assert not any(stored(store, LONG))
    monkeypatch.setattr(store, "_paused_until", 0.0)
    put(store, LONG)
    assert stored(store, LONG) == [True] * 8


def test_a_folder_of_others_is_left_alone(tmp_path) -> None:
    for name in ("notes.txt", "index.sqlite"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        for make in (True, False):
            with pytest.raises(UsageError, match=r"no context store; "):
                ContextStore(folder, make=make)
        assert [(one.name, one.read_text()) for one in folder.iterdir()] == [(name, "mine")]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="makes them"):
        ContextStore(empty, make=False)
    ContextStore(empty).close()
    ContextStore(empty, make=False).close()


@pytest.mark.parametrize("place", ["a file", "in a file", "no index"])
def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, place) -> None:
    folder = tmp_path / "contexts"
    if place == "no index":
        ContextStore(folder).close()
        (folder / "index.sqlite").unlink()
        (folder / "index.sqlite").mkdir()
        reason = "Is a directory"
    else:
        (tmp_path / "contexts").write_text("")
        folder = folder if place == "a file" else folder / "in it"
        reason = "not a folder" if place == "a file" else "Not a directory"
    with pytest.raises(UsageError) as caught:
        ContextStore(folder, 10**9)
    assert str(caught.value) == f"--context-store {folder}: {reason}"
    assert caught.value.parameter == "context_store"


def test_the_default_folder_is_beside_the_other_caches(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FOURBEE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "contexts"
    monkeypatch.delenv("FOURBEE_HOME")
    assert default_folder() == Path.home() / ".cache" / "fourbee" / "contexts"


def test_threads_share_a_store(opened, folder) -> None:
    store, wrong = opened(60 * FILE_BYTES), []

    def work(number: int) -> None:
        try:
            pages = pages_of(text(number % 3, 6))
            for _ in range(3):
                put(store, pages)
                store.remember(f"chat {number}", "", ROOT, text(number % 3, 6))
                assert stored(store, pages) == [True] * 6
        except Exception as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and agrees(folder) and store.verify().bad == ()
