"""The context store under `kill -9`, several writers, and any order of calls and damage."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fourbee.engine.context_store import ContextStore
from fourbee.engine.stored_file import TEMPORARY

from .stored_pages import (
    FILE_BYTES,
    ROOT,
    conversation,
    files,
    get,
    pages_of,
    stored,
    text,
    write,
)

KILLS = 100


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Programs that have imported the store already, so that a hundred start in a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.stored_pages"])
    return context


def check(store: ContextStore, seeds: int) -> int:
    """How much is there of what the writers of these seeds write; all of it must be right."""
    found = 0
    for seed in range(seeds):
        texts = list(conversation(seed))
        for _, token_ids in texts:
            found += sum(stored(store, pages_of(token_ids)))
        recalled = store.recall(f"chat {seed}", "")
        assert recalled is None or recalled in [token_ids for _, token_ids in texts]
    return found


@pytest.mark.parametrize("max_bytes", [None, 20 * FILE_BYTES])
def test_a_writer_killed_at_any_moment_leaves_a_store_that_is_right(
    processes, tmp_path, caplog, max_bytes
) -> None:
    drawn, found, torn = random.Random(7), 0, 0
    for number in range(KILLS // 2):
        writer = processes.Process(target=write, args=(tmp_path, number % 3, max_bytes, 10**6))
        before, deadline = tmp_path.stat().st_mtime_ns, time.monotonic() + 30
        writer.start()
        while tmp_path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.001)  # until it writes: a busy machine is slow to start it
        time.sleep(drawn.uniform(0.005, 0.04))
        writer.kill()
        writer.join(10)
        assert writer.exitcode == -signal.SIGKILL
        store = ContextStore(tmp_path, max_bytes)
        # Whole, without having been mended: nothing half written has the name of a page.
        assert store.verify().bad == () and not caplog.records
        found += check(store, 3)
        if max_bytes is not None:
            assert sum(path.stat().st_size for path in files(tmp_path)) <= max_bytes
        store.close()
        left = [path for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY[0])]
        torn += len(left)
        for path in left:
            path.unlink()
    assert found > 10 * KILLS and torn > KILLS // 20  # there was much to read, and much was torn


def test_two_writers_at_once(processes, tmp_path) -> None:
    limit = 30 * FILE_BYTES
    writers = [
        processes.Process(target=write, args=(tmp_path, seed, limit, 5)) for seed in (0, 0, 1)
    ]
    for writer in writers:
        writer.start()
    store, found = ContextStore(tmp_path, limit), 0
    while any(writer.is_alive() for writer in writers):
        found += check(store, 2)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert found and store.verify().bad == () and check(store, 2)
    # Each may have found room for a page that another took.
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit + 3 * FILE_BYTES
    store.close()


TEXTS = [text("a", 3)[: 2 * 64] + text(name, 3) for name in "abc"] + [text("d", 4)]
PAGES = list({page.key: page for token_ids in TEXTS for page in pages_of(token_ids)}.values())
OWNERS = ["", "alice"]
CALLS = st.one_of(
    st.tuples(st.sampled_from(["put", "get", "flip", "delete", "cut"]), st.sampled_from(PAGES)),
    st.tuples(st.sampled_from(["put text"]), st.sampled_from(TEXTS)),
    st.tuples(
        st.sampled_from(["remember", "recall", "prune"]),
        st.tuples(st.sampled_from("xy"), st.sampled_from(OWNERS), st.sampled_from(TEXTS)),
    ),
    st.tuples(st.sampled_from(["reopen", "lose index", "garbage index", "verify"]), st.none()),
)


class Model:
    """What the store must hold: the same calls upon dictionaries, with files that are damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, ContextStore(folder)
        self.pages: dict[bytes, bool] = {}  # key -> whole
        self.contexts: dict[tuple[str, str], tuple[int, ...]] = {}

    def do(self, what: str, subject: object) -> None:
        getattr(self, what.replace(" ", "_"))(subject)
        self._damaged_ones_may_be_gone()

    def put(self, page) -> None:
        kept = page.key in self.pages or page.parent == ROOT or page.parent in self.pages
        assert self.store.put(page.key, page.parent, page.token_ids, page.data, "") == kept
        if kept:
            self.pages.setdefault(page.key, True)

    def put_text(self, token_ids) -> None:
        for page in pages_of(token_ids):
            self.do("put", page)

    def get(self, page) -> None:
        whole = self.pages.get(page.key, False)
        assert get(self.store, page) == (page.data if whole else None)
        if not whole:
            self.pages.pop(page.key, None)

    def flip(self, page) -> None:
        self._damage(page, lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])

    def cut(self, page) -> None:
        self._damage(page, lambda data: data[:-1])

    def _damage(self, page, damage) -> None:
        if self.pages.get(page.key):
            path = self.folder / f"{page.key.hex()}.page"
            path.write_bytes(damage(path.read_bytes()))
            self.pages[page.key] = False

    def delete(self, page) -> None:
        (self.folder / f"{page.key.hex()}.page").unlink(missing_ok=True)
        self.pages.pop(page.key, None)

    def remember(self, named) -> None:
        context_id, owner, token_ids = named
        assert self.store.remember(context_id, owner, ROOT, token_ids)
        self.contexts[context_id, owner] = token_ids

    def recall(self, named) -> None:
        assert self.store.recall(*named[:2]) == self.contexts.get(named[:2])

    def prune(self, named) -> None:
        self.store.prune(context_id=named[0], namespace=named[1])
        going = self.contexts.pop(named[:2], None)
        staying = {page.key for ids in self.contexts.values() for page in pages_of(ids)}
        gone = {page.key for page in pages_of(going or ())} - staying
        lost: set[bytes] = set()  # or damaged, or after one that is, which nobody finds
        for page in PAGES:  # parents come before what follows them
            # All here is of one owner's recipe, which a context of the other may share.
            if page.key in gone or (page.parent in gone and page.key not in staying):
                gone.add(page.key)
            elif not self.pages.get(page.key) or (page.parent in lost and page.key not in staying):
                lost.add(page.key)
        if named[1] == "":  # the pages are of the owner ""
            for key in gone:
                self.pages.pop(key, None)
            if going is not None:  # these go if the index has missed the ones before
                there = {path.stem for path in files(self.folder)}
                lost = {key for key in lost if key.hex() not in there}
                self.pages = {key: whole for key, whole in self.pages.items() if key not in lost}

    def reopen(self, _) -> None:
        self.store.close()
        self.store = ContextStore(self.folder)

    def lose_index(self, _) -> None:
        for path in self.folder.glob("index.sqlite*"):
            path.unlink()

    def garbage_index(self, _) -> None:
        self.store.close()
        (self.folder / "index.sqlite").write_bytes(b"garbage" * 1000)
        self.store = ContextStore(self.folder)

    def verify(self, _) -> None:
        self.store.verify()
        there = {path.stem for path in files(self.folder)}
        assert there == {key.hex() for key, whole in self.pages.items() if whole}
        self.pages = {key: whole for key, whole in self.pages.items() if whole}

    def _damaged_ones_may_be_gone(self) -> None:
        """Whatever opens the index may find them: a store that is opened, or a call without one."""
        there = {path.stem for path in files(self.folder)}
        assert there >= {key.hex() for key, whole in self.pages.items() if whole}
        self.pages = {key: whole for key, whole in self.pages.items() if key.hex() in there}


A, B = (pages_of(token_ids) for token_ids in TEXTS[:2])  # they have two pages in common
# A call that finds no index makes it anew, and finds what is cut then: it may be written again.
CUT_WITHOUT_INDEX = [
    ("put text", TEXTS[0]), ("cut", A[1]), ("lose index", None), ("put", B[2]), ("put", A[1]),
]  # fmt: skip
# The same while the page after it is put: that one stays, and is found when this one is back.
CUT_BEFORE_A_PUT = [
    ("put", A[0]), ("cut", A[0]), ("lose index", None), ("put", A[1]), ("put", A[0]),
]  # fmt: skip
# What follows a page that the index has forgotten goes with the context that it came from.
LOST_BEFORE_A_PRUNE = [
    ("put text", TEXTS[1]), ("delete", B[2]), ("remember", ("x", "", TEXTS[0])), ("reopen", None),
    ("prune", ("x", "", TEXTS[0])),
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(CALLS, max_size=40))
@example(CUT_WITHOUT_INDEX)
@example(CUT_BEFORE_A_PUT)
@example(LOST_BEFORE_A_PRUNE)
def test_any_order_of_calls_and_damage(calls) -> None:
    with TemporaryDirectory() as folder:
        model = Model(Path(folder))
        try:
            for what, subject in calls:
                model.do(what, subject)
            for page in PAGES:
                model.get(page)
            for context_id in "xy":
                for owner in OWNERS:
                    model.recall((context_id, owner))
            model.verify(None)
        finally:
            model.store.close()
