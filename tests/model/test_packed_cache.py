"""The cache of packed models: made once, made anew when it should be, never in anybody's way."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.kernels import packed
from fourbee.kernels.backends import open_operations
from fourbee.model import hub, packed_cache, quantize
from fourbee.model.checkpoint_files import check_weights, load_weights
from fourbee.model.packed_cache import packed_folder
from fourbee.model.quantize import FORMATS, quantize_model

from .conftest import message, random_tensors, write_folder
from .test_quantize import WIDE

INT4, INT8 = FORMATS["int4"], FORMATS["int8"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=3)
QUESTIONS = ["What is 347 + 285?", "你好", "fourbee"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FOURBEE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path) -> Path:
    return write_folder(tmp_path / "source", WIDE, random_tensors(WIDE))


@pytest.fixture
def told(caplog):
    """The lines of the log since the last call."""
    caplog.set_level(logging.INFO, "fourbee")

    def lines() -> list[str]:
        found = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return found

    return lines


def made(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_ino


def test_it_is_made_once_and_anew_when_its_source_changes(home, source, told) -> None:
    first = packed_folder(source, INT4)
    assert first.parent == home / "packed" and first.name.startswith("source-int4c-")
    assert told() == [f"INFO packing source into int4c, once, kept in {first}"]
    inode = made(first)
    assert packed_folder(source, INT4) == first and made(first) == inode and told() == []
    assert packed_folder(source, INT8) not in (first, None)
    assert packed_folder(first, INT4) is None  # is packed already
    told()
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert packed_folder(source, INT4) == first and made(first) != inode
    assert told() == [f"INFO packing source into int4c, once, kept in {first}"]
    # Another folder of this name is another model.
    (home / "elsewhere").mkdir()
    other = Path(shutil.copytree(source, home / "elsewhere" / "source"))
    assert packed_folder(other, INT4) != first


@pytest.mark.parametrize(
    ("name", "label"),
    [("Qwen3-0.6B", "Qwen3-0.6B"), ("m" * 250, "m" * 80), ("模型" * 42, "模型" * 13)],
)
def test_it_has_the_name_of_its_source(home, source, name, label) -> None:
    source = source.rename(source.with_name(name))
    assert packed_folder(source, INT4).name.rpartition("-int4c-")[0] == label


def test_a_newer_packer_makes_it_anew(home, source, monkeypatch) -> None:
    inode = made(packed_folder(source, INT4))
    monkeypatch.setattr(packed_cache, "PACKER", packed.PACKER + 1)
    assert made(packed_folder(source, INT4)) != inode


@pytest.mark.parametrize(
    "damage",
    ["truncated", "flipped", "no record", "no config", "emptied", "deep record", "bare record"],
)
def test_what_is_damaged_is_made_anew_and_one_line_says_so(home, source, told, damage) -> None:
    folder = packed_folder(source, INT4)
    file = folder / "model.safetensors"
    whole, inode = file.read_bytes(), made(folder)
    told()
    if damage == "truncated":
        os.truncate(file, 1000)
    elif damage == "flipped":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "emptied":
        for one in folder.iterdir():
            one.unlink()
    elif damage == "deep record":
        (folder / "packed.json").write_text("[" * 100_000)
    elif damage == "bare record":
        record = json.loads((folder / "packed.json").read_text())
        (folder / "packed.json").write_text(json.dumps(record | {"files": []}))
        os.truncate(file, 1000)
    else:
        (folder / ("packed.json" if damage == "no record" else "config.json")).unlink()
    assert packed_folder(source, INT4) == folder
    assert told() == [
        f"WARNING {folder}: damaged or incomplete: it is made anew",
        f"INFO packing source into int4c, once, kept in {folder}",
    ]
    assert file.read_bytes() == whole and made(folder) != inode
    check_weights(folder)


def test_without_room_or_rights_it_is_one_warning_and_nothing_is_left(
    home, source, told, monkeypatch
) -> None:
    monkeypatch.setattr(hub, "SPARE_BYTES", 10**18)
    assert packed_folder(source, INT4) is None
    assert len(lines := [line for line in told() if line.startswith("WARNING")]) == 1
    assert lines[0].startswith("WARNING the packed model is not kept for later starts: ")
    assert lines[0].endswith("GB free on this disk, of which 1000000000.00 GB are to stay free")
    monkeypatch.setattr(hub, "SPARE_BYTES", 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "write_files", full)
    assert packed_folder(source, INT4) is None
    assert next(line for line in told() if line.startswith("WARNING")).endswith(
        ": cannot be written: No space left on device"
    )
    left = [path for path in (home / "packed").iterdir() if path.suffix != ".lock"]
    assert left == []
    shutil.rmtree(home)
    home.write_text("a file where the folder should be")
    assert packed_folder(source, INT4) is None
    assert told() == [
        "WARNING the packed model is not kept for later starts: "
        f"{home}/packed/{packed_cache_name(source)}: Not a directory"
    ]


def packed_cache_name(source: Path) -> str:
    return f"{source.name}-int4c-{packed_cache._key(source, INT4)}"


def test_a_whole_folder_is_used_where_nothing_can_be_written(home, source, monkeypatch) -> None:
    folder = packed_folder(source, INT4)

    def refuse(*_: object) -> None:
        raise AssertionError("asked for the lock")

    monkeypatch.setattr(packed_cache, "_alone", refuse)
    assert packed_folder(source, INT4) == folder


def _ask(source: Path, home: Path, answers) -> None:
    os.environ["FOURBEE_HOME"] = str(home)
    folder = packed_folder(source, INT4)
    answers.put((str(folder), made(folder)))


def test_processes_that_start_together_make_it_once(home, source) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_ask, args=(source, home, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert len(found) == 1  # one folder, written once


def test_an_interrupted_first_start_leaves_nothing(home, source) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed_folder(source, INT4, interrupt)
    assert [path for path in (home / "packed").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_greedy_answers_from_the_cache_are_those_of_packing_in_memory(
    home, embedded_model, monkeypatch, form
) -> None:
    pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
    reports: list[int] = []

    def answers(progress=None):
        llm = LLM.load(embedded_model, backend="native", quantize=form, progress=progress)
        prompts = [llm.chat_format.encode([{"role": "user", "content": q}]) for q in QUESTIONS]
        return [(one.token_ids, one.logprobs) for one in llm.generate(prompts, GREEDY)]

    first = answers(lambda name, done, total: reports.append(done))
    assert len(reports) > 10
    [folder] = [path for path in (home / "packed").iterdir() if path.is_dir()]
    reports.clear()
    assert answers(lambda name, done, total: reports.append(done)) == first and not reports
    quantize_model(embedded_model, home / "by_hand", FORMATS[form])
    by_hand = (home / "by_hand" / "model.safetensors").read_bytes()
    assert by_hand == (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(hub, "SPARE_BYTES", 10**18)
    shutil.rmtree(folder)
    assert answers() == first  # packed in memory: the same bits
    assert not folder.exists()


def test_what_cannot_be_packed_is_said_by_the_loader(home, tmp_path, told) -> None:
    pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
    config = replace(WIDE, hidden_size=64)
    narrow = write_folder(tmp_path / "narrow", config, random_tensors(config))
    assert packed_folder(narrow, INT4) is None
    assert not [line for line in told() if line.startswith("WARNING")]
    text = message(load_weights, narrow, open_operations("native", quantize="int4"))
    assert text.endswith("64 columns, rotated: expected a multiple of 128")
