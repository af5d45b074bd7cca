"""`fourbee contexts`: what is told of a store is what is in it, and what is pruned is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourbee.engine.context_store import ContextStore
from fourbee.engine.kv_recipe import page_key
from fourbee.kernels.attention_pattern import PAGE_KEYS

ROOT = bytes(32)
FILE_BYTES = 4096 + 1000


def fill(store: ContextStore, context_id: str, namespace: str, pages: int, start: int) -> None:
    """A context of so many pages and three tokens more."""
    token_ids, parent = range(start, start + pages * PAGE_KEYS + 3), ROOT
    for first in range(0, pages * PAGE_KEYS, PAGE_KEYS):
        tokens = token_ids[first : first + PAGE_KEYS]
        key = page_key(parent, tokens)
        assert store.put(key, parent, tokens, bytes(1000), namespace)
        parent = key
    assert store.remember(context_id, namespace, ROOT, token_ids)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A store with three contexts, each last used on a day of its own."""
    folder = tmp_path / "contexts"
    store = ContextStore(folder)
    days = {"chat-1": ("alice", 2, 0), "chat-2": ("alice", 3, 1000), "book": ("", 5, 2000)}
    for day, (context_id, (namespace, pages, start)) in enumerate(days.items()):
        monkeypatch.setattr(
            "fourbee.engine.context_store.time.time", lambda day=day: 86_400.0 * (day + 1)
        )
        fill(store, context_id, namespace, pages, start)
    store.close()
    monkeypatch.undo()
    return folder


def names(folder: Path) -> list[str]:
    store = ContextStore(folder)
    found = [context.context_id for context in store.contexts()]
    store.close()
    return found


def test_list_is_a_table_or_json(fourbee, folder) -> None:
    outcome = fourbee("contexts", "list", "--context-store", folder)
    assert (outcome.code, outcome.err) == (0, "")
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[0] == ["ID", "NAMESPACE", "TOKENS", "PAGES", "SIZE", "LAST", "USE"]
    assert [row[:6] for row in rows[1:]] == [
        ["book", "-", "323", "5/5", "25.5", "KB"],
        ["chat-2", "alice", "195", "3/3", "15.3", "KB"],
        ["chat-1", "alice", "131", "2/2", "10.2", "KB"],
    ]
    document = json.loads(fourbee("contexts", "list", "--context-store", folder, "--json").out)
    assert [(one["context_id"], one["last_use"]) for one in document] == [
        ("book", 3 * 86_400.0), ("chat-2", 2 * 86_400.0), ("chat-1", 86_400.0),
    ]  # fmt: skip


def test_a_long_id_is_not_cut_and_steers_no_terminal(fourbee, folder) -> None:
    store = ContextStore(folder)
    store.remember("x" * 300 + "\x1b[2J\n[bold]", "a\tb", ROOT, (1,))
    store.close()
    line = fourbee("contexts", "list", "--context-store", folder).out.splitlines()[1]
    assert line.startswith("x" * 300 + r"\x1b[2J\n[bold]") and r"a\tb" in line
    shown = fourbee("contexts", "info", "x" * 300 + "\x1b[2J\n[bold]", "--context-store", folder)
    assert shown.out.startswith("context    " + "x" * 300 + r"\x1b[2J\n[bold]")


def test_the_default_folder_and_an_empty_store(fourbee, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FOURBEE_HOME", str(tmp_path))
    assert fourbee("contexts", "list").out == f"no named contexts in {tmp_path}/contexts\n"
    assert fourbee("contexts", "list", "--json").out == "[]\n"
    assert fourbee("contexts", "verify").out == (
        "0 contexts and 0 pages are whole, 0 B; 0 damaged\n"
    )
    assert fourbee("contexts", "prune", "--all").out == "removed 0 contexts and 0 pages, 0 B\n"


def test_info_tells_all_of_one_id(fourbee, folder) -> None:
    store = ContextStore(folder)
    fill(store, "book", "bob", 1, 3000)
    store.close()
    outcome = fourbee("contexts", "info", "book", "--context-store", folder)
    lines = [line.split(maxsplit=1) for line in outcome.out.splitlines()]
    assert [value for name, value in lines if name == "namespace"] == ["bob", "-"]
    assert [value for name, value in lines if name == "pages"] == [
        "1 of 1 on disk", "5 of 5 on disk",
    ]  # fmt: skip
    assert ["recipe", ROOT.hex()] in lines
    [bob, nobody] = json.loads(
        fourbee("contexts", "info", "book", "--json", "--context-store", folder).out
    )
    assert (bob["tokens"], nobody["tokens"], nobody["bytes"]) == (67, 323, 5 * FILE_BYTES)
    outcome = fourbee("contexts", "info", "film", "--context-store", folder)
    assert (outcome.code, outcome.err) == (2, f"fourbee: context 'film': not in {folder}\n")


@pytest.mark.parametrize(
    ("words", "left", "pages"),
    [
        (["--context", "chat-2"], ["book", "chat-1"], 3),
        (["--context", "chat-2", "--namespace", "bob"], ["book", "chat-2", "chat-1"], 0),
        (["--namespace", "alice"], ["book"], 5),
        (["--namespace", ""], ["chat-2", "chat-1"], 5),
        (["--older-than", "30d"], [], 10),
        (["--to", "31KB"], ["book"], 5),
        (["--to", "1GB"], ["book", "chat-2", "chat-1"], 0),
        (["--all"], [], 10),
    ],
)
def test_prune_removes_what_was_named_and_says_so(fourbee, folder, words, left, pages) -> None:
    before = json.loads(fourbee("contexts", "verify", "--json", "--context-store", folder).out)
    outcome = fourbee("contexts", "prune", *words, "--context-store", folder)
    assert outcome.code == 0, outcome.err
    contexts = 3 - len(left)
    assert outcome.out.startswith(
        f"removed {contexts} context{'' if contexts == 1 else 's'} and {pages} pages, "
    )
    assert names(folder) == left
    after = json.loads(fourbee("contexts", "verify", "--json", "--context-store", folder).out)
    assert (after["pages"], after["contexts"]) == (10 - pages, len(left))
    size = sum(path.stat().st_size for path in folder.glob("*.[pc]*"))
    assert before["bytes"] - after["bytes"] == pages * FILE_BYTES + contexts * 4096
    assert after["bytes"] == size


def test_prune_by_age_leaves_what_is_younger(fourbee, folder, monkeypatch) -> None:
    monkeypatch.setattr("fourbee.engine.store_upkeep.time.time", lambda: 86_400 * 3.5)
    outcome = fourbee(
        "contexts", "prune", "--older-than", "36h", "--json", "--context-store", folder
    )
    assert json.loads(outcome.out) == {
        "pages": 2, "contexts": 1, "bytes": 2 * FILE_BYTES + 4096,
    }  # fmt: skip
    assert names(folder) == ["book", "chat-2"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "prune: expected --older-than, --namespace, --context or --to, or --all alone"),
        (["--all", "--to", "5GB"],
         "prune: expected --older-than, --namespace, --context or --to, or --all alone"),
        (["--to", "5 apples"],
         "--to 5 apples: expected a size such as 20GB, 512MiB or a number of bytes"),
        (["--older-than", "30"],
         "--older-than 30: expected a span of time such as 30d, 12h, 15m or 90s"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_one_line_and_removes_nothing(
    fourbee, folder, words, expected
) -> None:
    outcome = fourbee("contexts", "prune", *words, "--context-store", folder)
    assert (outcome.code, outcome.err) == (2, f"fourbee: {expected}\n")
    assert len(names(folder)) == 3


def test_verify_finds_damage_once(fourbee, folder) -> None:
    assert fourbee("contexts", "verify", "--context-store", folder).code == 0
    page, other = sorted(folder.glob("*.page"))[:2]
    data = page.read_bytes()
    page.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    other.write_bytes(other.read_bytes()[:-1])
    outcome = fourbee("contexts", "verify", "--context-store", folder)
    assert outcome.code == 3
    *bad, last = outcome.out.splitlines()
    assert sorted(bad) == sorted([
        f"damaged, removed: {page.name}: the data are not those that were written",
        f"damaged, removed: {other.name}: {FILE_BYTES - 1} bytes, expected {FILE_BYTES}",
    ])  # fmt: skip
    assert last == "3 contexts and 8 pages are whole, 53.1 KB; 2 damaged"
    assert not page.exists() and not other.exists()
    again = fourbee("contexts", "verify", "--context-store", folder, "--json")
    assert again.code == 0 and json.loads(again.out)["bad"] == []


def test_a_folder_that_is_not_there_or_is_none_is_one_line(fourbee, tmp_path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.write_text("")
    for path, reason in ((missing, "no such folder"), (file, "not a folder")):
        outcome = fourbee("contexts", "list", "--context-store", path)
        assert (outcome.code, outcome.err) == (2, f"fourbee: --context-store {path}: {reason}\n")
    assert not missing.exists()


def test_alone_it_shows_its_help(fourbee) -> None:
    outcome = fourbee("contexts")
    assert outcome.code == 0
    assert all(word in outcome.out for word in ("list", "info", "prune", "verify"))
