"""Sources of every kind as corpora: read, tokenised once, kept, and made anew where damaged."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.settings import build, explain
from fourbee.training import tokenise as module
from fourbee.training.corpus import ARRAYS, Corpus
from fourbee.training.run_plan import DataSettings
from fourbee.training.sources import Source, read_samples
from fourbee.training.tokenise import load_corpus, tokenise

from .conftest import conversation

TEXTS = ["one two", "blue", "three\nfour"]


def written(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(path: Path, form: str = "auto") -> list[str]:
    return [sample["text"] for _, sample in read_samples(Source(path, format=form))]


def error_of(call, *arguments, kind=TrainingError) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    return str(caught.value)


# ---- files


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_lines_lists_and_texts_plain_or_compressed(tmp_path, gz):
    samples = [{"text": text} for text in TEXTS]
    lines = "\n".join(json.dumps(one) for one in samples)
    assert texts(written(tmp_path / f"a.jsonl{gz}", lines)) == TEXTS
    assert texts(written(tmp_path / f"a.json{gz}", json.dumps(samples, indent=1))) == TEXTS
    marked = written(tmp_path / f"a.txt{gz}", "<|endoftext|>".join(TEXTS) + "<|endoftext|>\n")
    assert texts(marked) == TEXTS
    assert texts(written(tmp_path / f"b.txt{gz}", "one\n\ntwo\n")) == ["one\n\ntwo\n"]
    assert texts(written(tmp_path / f"b.txt{gz}", "one\n\ntwo\n"), "lines") == ["one", "two"]


def test_places_are_lines(tmp_path):
    path = written(tmp_path / "a.txt", "one\ntwo<|endoftext|>three\n\nfour<|endoftext|>five")
    places = [(where.rpartition(":")[2], one["text"]) for where, one in read_samples(Source(path))]
    assert places == [("1", "one\ntwo"), ("2", "three\n\nfour"), ("4", "five")]


def test_a_text_may_hold_any_line_mark_but_the_line_feed(tmp_path):
    kept = [f"one{mark}two" for mark in "\u2028\u2029\x85\x1c"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in kept]
    assert texts(written(tmp_path / "data.jsonl", "\r\n".join(lines))) == kept


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops", "not valid JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", "expected a JSON object"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (b'{"text": "\\ud800"}', "text holds half of a surrogate pair; give valid Unicode"),
        (
            b'{"text": "a", "difficulty": 1' + b"0" * 400 + b"}",
            "difficulty is too large; expected a number",
        ),
        (
            b'{"text": "a", "x": 1' + b"0" * 5000 + b"}",
            "not valid JSON: a number of too many digits",
        ),
        (b'{"text": "a", "x": 1e999}', "x is inf; expected a finite number"),
        (b'{"text": "a", "x": NaN}', "x is nan; expected a finite number"),
        (b'{"text": "a", "difficulty": "5"}', "difficulty is '5'; expected a number"),
        (b'{"text": ""}', "nothing to learn: no assistant turn or completion"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, tokenizer_folder, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(conversation(0)).encode() + b"\n" + line + b"\n{worse\n")
    found = error_of(tokenise, Source(path), tokenizer_folder, "all")
    assert found == f"{path}:2: {reason}"


def test_empty_lines_are_no_samples_and_a_byte_order_mark_is_no_text(tmp_path, tokenizer_folder):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "red"}\n\n{"text": "cat"}\n \n')
    corpus = tokenise(Source(path), tokenizer_folder, "all")
    assert [corpus.where(one) for one in range(len(corpus))] == [f"{path}:1", f"{path}:3"]
    text = tmp_path / "data.txt"
    text.write_bytes(b"\xef\xbb\xbfred")
    ((_, sample),) = read_samples(Source(text))
    assert sample == {"text": "red"}


def test_files_that_are_not_what_they_seem_are_one_line(tmp_path, tokenizer_folder):
    def found(path: Path, kind=TrainingError) -> str:
        return error_of(lambda: list(read_samples(Source(path))), kind=kind)

    path = tmp_path / "no.jsonl"
    assert found(path) == f"data {path}: no such file"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    assert found(path).startswith(f"{path}: cannot be read: Compressed file ended")
    path.write_bytes(b'{"text": "a"}')
    assert found(path) == f"{path}: cannot be read: Not a gzipped file (b'{{\"')"
    path = written(tmp_path / "a.json", '{"text": "a"}')
    assert found(path).startswith(f"{path}: expected a list of objects")
    (tmp_path / "folder").mkdir()
    assert found(tmp_path / "folder").startswith(f"{tmp_path}/folder: a folder without state.json")
    (tmp_path / "folder/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = f"{tmp_path}/folder/train, {tmp_path}/folder/test"
    assert found(tmp_path / "folder").endswith(f"several splits; expected one: {splits}")
    empty = written(tmp_path / "empty.jsonl", "")
    assert error_of(tokenise, Source(empty), tokenizer_folder, "all") == (
        f"{empty}: holds no samples"
    )


def test_without_pyarrow_its_files_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"")
    call = lambda: list(read_samples(Source(path)))  # noqa: E731
    assert error_of(call, kind=UsageError) == (
        f"{path}: needs pyarrow, which is not installed: pip install 'fourbee[data]'"
    )


def test_parquet_files_and_dataset_folders_are_read_with_pyarrow(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [*(conversation(index) for index in range(3)), {"text": "a"}, {"text": "b"}]
    # Columns are those of the first row, unless named.
    table = arrow.Table.from_pylist(rows, arrow.unify_schemas(
        [arrow.Table.from_pylist([row]).schema for row in rows]
    ))  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    folder = tmp_path / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table[:2], table[2:]), strict=True):
        with arrow.ipc.new_stream(str(folder / name), part.schema) as stream:
            stream.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    for path in (tmp_path / "a.parquet", folder):
        read = [dict(sample) for _, sample in read_samples(Source(path))]
        assert read == rows
    (tmp_path / "bad.parquet").write_bytes(b"no")
    (folder / names[1]).write_bytes(b"no")
    for path in (tmp_path / "bad.parquet", folder):
        with pytest.raises(TrainingError):
            list(read_samples(Source(path)))


def test_in_a_recipe_a_string_stands_for_a_source():
    table = {"data": ["a.jsonl", {"path": "b.txt", "language": "zh", "weight": 2}]}
    settings = build(DataSettings, table)
    assert settings.data == (
        Source(Path("a.jsonl")), Source(Path("b.txt"), language="zh", weight=2.0),
    )  # fmt: skip
    shown = "data = [{path = 'a.jsonl'}, {path = 'b.txt', language = 'zh', weight = 2.0}]  (recipe)"
    assert shown in explain(settings, table)


# ---- corpora


def same(one: Corpus, other: Corpus) -> bool:
    arrays = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    equal = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)
    nothing = dict.fromkeys(ARRAYS)
    return equal and replace(one, **nothing) == replace(other, **nothing)


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A tokenizer folder that a test may change."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "own"))


def test_any_number_of_processes_gives_the_same_corpus_and_the_first_error(
    tmp_path, tokenizer_folder
):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(conversation(index)) for index in range(700)]
    path.write_text("\n".join(lines))
    counted: list[int] = []
    alone = tokenise(Source(path), tokenizer_folder, "assistant", counted.append)
    assert len(alone) == sum(counted) == 700
    assert same(alone, tokenise(Source(path), tokenizer_folder, "assistant", workers=2))
    lines[300], lines[600] = '{"text": ""}', "{oops"
    path.write_text("\n".join(lines))
    for workers in (1, 2):
        found = error_of(
            lambda: tokenise(Source(path), tokenizer_folder, "assistant", workers=workers)  # noqa: B023
        )
        assert found.startswith(f"{path}:301: nothing to learn")
    lines[10] = '{"text": ""}'
    path.write_text("\n".join(lines))
    for workers in (1, 2):
        with pytest.raises(TrainingError, match=r"data\.jsonl:11: nothing to learn"):
            tokenise(Source(path), tokenizer_folder, "assistant", workers=workers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the children of a process in /proc")
def test_workers_end_with_a_parent_that_was_killed(tmp_path, tokenizer_folder):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one two"}\n' * 1_000_000)
    words = (
        "import sys; from pathlib import Path; from fourbee.training.sources import Source;"
        "from fourbee.training.tokenise import tokenise\n"
        "if __name__ == '__main__':"
        " tokenise(Source(Path(sys.argv[1])), Path(sys.argv[2]), 'all', workers=2)"
    )
    script = tmp_path / "parent.py"
    script.write_text(words)
    command = [sys.executable, str(script), str(path), str(tokenizer_folder)]
    children: list[int] = []
    with subprocess.Popen(command) as parent:
        until = time.monotonic() + 60
        while len(children) < 3 and time.monotonic() < until:  # two workers and a tracker
            assert parent.poll() is None
            listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
            children = [int(one) for one in listed.split()]
            time.sleep(0.05)
        time.sleep(2)  # they are at work
        parent.kill()
    left = {child for child in children if Path(f"/proc/{child}").exists()}
    until = time.monotonic() + 20
    while left and time.monotonic() < until:
        left = {child for child in left if Path(f"/proc/{child}").exists()}
        time.sleep(0.05)
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert len(children) >= 3 and not left


def test_what_a_killed_run_left_half_written_goes_with_the_next_write(tmp_path, tokenizer_folder):
    path, cache = written(tmp_path / "a.txt", "one two"), tmp_path / "cache"
    load_corpus(Source(path), tokenizer_folder, "all", cache)
    [kept] = cache.iterdir()
    shutil.rmtree(kept)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (cache / f"{kept.name}.partial-{dead.pid}").mkdir()
    (cache / f"{kept.name}.partial-bak").mkdir()  # not of ours
    own = cache / f"{kept.name}.partial-{os.getppid()}"  # of one that runs
    own.mkdir()
    load_corpus(Source(path), tokenizer_folder, "all", cache)
    assert sorted(cache.iterdir()) == sorted([kept, own, cache / f"{kept.name}.partial-bak"])


def test_a_corpus_knows_of_each_sample_its_line_difficulty_label_and_answer(
    tmp_path, tokenizer_folder
):
    path = tmp_path / "data.jsonl"
    samples = [
        {"prompt": "one", "completion": "two", "label": True, "difficulty": 0.5},
        {"prompt": "one"},
        {"prompt": "one", "completion": "three four", "label": False},
    ]
    path.write_text("\n".join(json.dumps(one) for one in samples))
    corpus = tokenise(Source(path, bad_samples="skip"), tokenizer_folder, "label")
    assert corpus.labels.tolist() == [True, False]
    assert corpus.lines.tolist() == [1, 3]
    assert corpus.difficulty.tolist() == [0.5, corpus.tokens(1)]
    assert (corpus.skipped, corpus.parts, corpus.answers) == (1, 1, ())
    assert corpus.where(1) == f"{path}:3"
    path.write_text(json.dumps({"prompt": "one", "chosen": "two", "rejected": "red cat"}))
    pair = tokenise(Source(path), tokenizer_folder, "pair")
    assert (len(pair), len(pair.lengths), pair.parts) == (1, 2, 2)
    assert pair.tokens(0) == len(pair.ids)
    assert [span.stop - span.start for span in pair.spans(0, 0, 1)] == pair.lengths.tolist()
    path.write_text(json.dumps({"prompt": "one", "answer": "1"}))
    assert tokenise(Source(path), tokenizer_folder, "prompt").answers == ("1",)
    path.write_text('{"text": ""}')
    skipped = (tokenise, Source(path, bad_samples="skip"), tokenizer_folder, "all")
    assert error_of(*skipped) == f"{path}: holds no samples but 1 bad ones"


# ---- the cache


def test_a_second_load_maps_what_was_kept_and_is_equal(data_file, folder, tmp_path, monkeypatch):
    counted: list[int] = []
    cache = tmp_path / "cache"
    first = load_corpus(Source(data_file), folder, "assistant", cache, counted.append)
    assert len(first) == sum(counted) == 60
    assert isinstance(first.ids, np.memmap)
    monkeypatch.setattr(module, "tokenise", lambda *_: pytest.fail("tokenised again"))
    assert same(first, load_corpus(Source(data_file), folder, "assistant", cache))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: (kept / "about.json").unlink(),
        lambda kept: (kept / "about.json").write_text("{"),
        lambda kept: (kept / "about.json").write_text("{}"),
        lambda kept: (kept / "ids.npy").unlink(),
        lambda kept: (kept / "ids.npy").write_bytes((kept / "ids.npy").read_bytes()[:-4]),
        lambda kept: (kept / "ids.npy").write_bytes(b"no array"),
        lambda kept: (kept / "learned.npy").write_bytes(
            (kept / "learned.npy").read_bytes()[:-1] + b"\2"
        ),
        lambda kept: shutil.copy(kept / "ids.npy", kept / "offsets.npy"),
    ],
)
def test_what_is_damaged_is_made_anew(data_file, tokenizer_folder, tmp_path, damage):
    arguments = (Source(data_file), tokenizer_folder, "assistant", tmp_path / "cache")
    whole = tokenise(*arguments[:3])
    load_corpus(*arguments)
    (kept,) = (tmp_path / "cache").iterdir()
    damage(kept)
    counted: list[int] = []
    assert same(load_corpus(*arguments, counted.append), whole)
    assert sum(counted) == 60
    assert same(load_corpus(*arguments, lambda _: pytest.fail("tokenised again")), whole)


def test_other_data_loss_format_tokenizer_or_template_are_tokenised_anew(
    data_file, folder, tmp_path
):
    cache = tmp_path / "cache"

    def load(loss="all", **of_source) -> Corpus:
        return load_corpus(Source(data_file, **of_source), folder, loss, cache)

    first = load()
    assert not np.array_equal(load("assistant").learned, first.learned)
    with pytest.raises(TrainingError, match="expected the key 'conversations'"):
        load(format="sharegpt")
    with data_file.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert len(load()) == len(first) + 1
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("opening ~ 'assistant", "opening ~ ' assistant"))
    assert len(load().ids) > len(first.ids) + 60
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_start|>assistant")
    with pytest.raises(TrainingError):
        load("assistant")
