"""Checkpoints: everything comes back, or one line says why not; a full disk breaks nothing."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import SafetensorError

from fourbee.foundation.errors import TrainingError
from fourbee.training import checkpoint
from fourbee.training.checkpoint import Progress, checkpoints, load_checkpoint, save_checkpoint
from fourbee.training.lora import LoraSettings
from fourbee.training.network import TrainableQwen3
from fourbee.training.optimizers import OptimizerSettings, build_optimizers

from .test_losses import CONFIG


@pytest.fixture
def model() -> TrainableQwen3:
    return TrainableQwen3(CONFIG, seed=1)


def stepped(
    model: TrainableQwen3, seed: int, matrices: Literal["adamw", "muon"] = "muon"
) -> list[torch.optim.Optimizer]:
    """Optimizers that have done one update."""
    trained = model.trained_tensors()
    optimizers = build_optimizers(trained, OptimizerSettings(matrices=matrices))
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()
    return optimizers


def save(run: Path, model: TrainableQwen3, update: int = 1, tokens: int = 0, keep: int = 2) -> Path:
    progress = Progress(update, tokens)
    return save_checkpoint(run, model.trained_tensors(), stepped(model, 0), progress, keep)


def moments(optimizers: list[torch.optim.Optimizer]) -> dict[tuple[int, int, str], torch.Tensor]:
    return {
        (number, index, name): one
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, one in state.items()
    }


def equal(one: TrainableQwen3, other: TrainableQwen3) -> bool:
    pairs = zip(one.all_tensors().items(), other.all_tensors().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("lora", [None, LoraSettings(2, targets=("q_proj", "up_proj"))])
def test_weights_optimizer_progress_and_state_come_back(tmp_path, lora):
    model, other = (TrainableQwen3(CONFIG, seed, lora) for seed in (1, 5))
    with torch.no_grad():  # what is frozen is the base's to bring
        for name, one in other.named_tensors().items():
            if lora is not None:
                one.copy_(model.named_tensors()[name])
    optimizers, progress = stepped(model, seed=0), Progress(7, 1234, 5.5)
    state = {"guard": [0.1, 1e-17], "stage": {"next": 3}}
    folder = save_checkpoint(tmp_path, model.trained_tensors(), optimizers, progress, 2, state)
    restored = stepped(other, seed=1)
    assert not equal(model, other)
    assert load_checkpoint(tmp_path, other.trained_tensors(), restored) == (progress, state)
    assert equal(model, other)
    saved, found = moments(optimizers), moments(restored)
    assert {number for number, _, _ in saved} == ({0, 1} if lora is None else {0})
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)
    size = sum(one.nbytes for one in model.trained_tensors().values())
    assert abs((folder / "model.safetensors").stat().st_size - size) < 5000


def test_a_run_whose_updates_were_all_left_out_is_taken_up(model, tmp_path):
    fresh = build_optimizers(model.trained_tensors(), OptimizerSettings())
    save_checkpoint(tmp_path, model.trained_tensors(), fresh, Progress(1), 1)
    used = stepped(TrainableQwen3(CONFIG), 0, "adamw")
    assert load_checkpoint(tmp_path, model.trained_tensors(), used) == (Progress(1), {})
    assert not moments(used)


def test_the_newest_checkpoints_are_kept(model, tmp_path):
    for update in (5, 10, 100):
        save(tmp_path, model, update)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-0000010", "update-0000100"]
    found = load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0))
    assert found is not None
    assert found[0].update == 100


def test_saving_the_same_update_again_replaces_it(model, tmp_path):
    for tokens in (1, 2):
        save(tmp_path, model, 3, tokens, keep=1)
    found = load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0))
    assert found == (Progress(3, 2), {})


def test_what_a_killed_run_left_is_removed_and_never_loaded(model, tmp_path):
    save(tmp_path, model, 3)
    (tmp_path / "update-0000004.partial").mkdir()
    found = load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0))
    assert found is not None
    assert found[0].update == 3
    save(tmp_path, model, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-0000003", "update-0000005"]


def test_all_of_it_is_on_the_disk_before_it_has_its_name(model, tmp_path, monkeypatch):
    done = []
    replace_folder = os.replace

    def renamed(source: Path, target: Path) -> None:
        done.append("renamed")
        replace_folder(source, target)

    monkeypatch.setattr(checkpoint, "_sync", lambda path: done.append(path.name))
    monkeypatch.setattr(checkpoint.os, "replace", renamed)
    save(tmp_path, model)
    files = ["digests.json", "model.safetensors", "optimizer.safetensors", "progress.json"]
    assert sorted(done[:4]) == files
    assert done[4:] == ["update-0000001.partial", "renamed", tmp_path.name]


def test_no_checkpoint_is_a_new_run(model, tmp_path):
    assert load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0)) is None


def test_what_is_no_checkpoint_is_left_alone(model, tmp_path):
    """A copy that the user made, notes, and an empty folder are neither loaded nor removed."""
    shutil.copytree(save(tmp_path, model, 8), tmp_path / "update-best")
    shutil.copytree(tmp_path / "update-best", tmp_path / "update-8")
    for name in ("update-9999999", "update-00000012", "update-old.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "update-notes.txt").write_text("the best one")
    (tmp_path / "update-0000099").write_text("a file")
    theirs = {path.name for path in tmp_path.iterdir()} - {"update-0000008"}
    for update in (9, 10):
        save(tmp_path, model, update)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == theirs | {"update-0000009", "update-0000010"}
    found = load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0))
    assert found is not None
    assert found[0].update == 10


def test_more_updates_than_the_name_has_room_for_are_in_order(tmp_path):
    names = ["update-9999999", "update-10000000", "update-100000000"]
    for name in names:
        (tmp_path / name / "one").mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == names


# What the system's error is when it comes from Python, and from safetensors.
FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    SafetensorError('I/O error: Os { code: 28, message: "No space left on device" }'),
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_is_one_line_and_leaves_the_last_whole_one(
    model, tmp_path, monkeypatch, error, file
):
    folder = save(tmp_path, model, 3)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write = checkpoint.save_file

    def fill_up(tensors, path):
        if path.name == file:
            path.write_bytes(b"half")
            raise error
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fill_up)
    with pytest.raises(TrainingError) as raised:
        save(tmp_path, model, 6)
    tensors = [*model.trained_tensors().values(), *moments(stepped(model, 0)).values()]
    needed = sum(one.nbytes for one in tensors)
    text = str(raised.value)
    assert text.startswith(
        f"checkpoint {tmp_path / 'update-0000006'}: cannot be written: No space left on device: "
        f"{needed:,} bytes needed, "
    )
    assert text.endswith(" free; the run can be resumed from update-0000003")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_not_saved(model, tmp_path, value):
    """What has diverged would push out the checkpoints from before."""
    save(tmp_path, model, 3)
    with torch.no_grad():
        model.named_tensors()["model.norm.weight"][1] = float(value)
    with pytest.raises(TrainingError) as error:
        save_checkpoint(tmp_path, model.trained_tensors(), [], Progress(6), 1)
    assert str(error.value) == (
        "update 6: model.norm.weight holds NaN or infinity, so it is not saved; "
        "expected a lower optimizer.learning_rate, in another output"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["update-0000003"]


# ---- what cannot be resumed


def refused(run: Path, model: TrainableQwen3, optimizers: list[torch.optim.Optimizer]) -> str:
    with pytest.raises(TrainingError) as error:
        load_checkpoint(run, model.trained_tensors(), optimizers)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_of_another_network_is_one_line(model, tmp_path):
    folder = save(tmp_path, TrainableQwen3(replace(CONFIG, intermediate_size=64)))
    text = refused(tmp_path, model, stepped(model, 0))
    assert text.startswith(f"checkpoint {folder}: cannot be resumed: saved by a run of another")


@pytest.mark.parametrize(("saved", "found"), [("muon", "adamw"), ("adamw", "muon")])
def test_a_checkpoint_of_other_optimizers_is_one_line(model, tmp_path, saved, found):
    folder = save_checkpoint(
        tmp_path, model.trained_tensors(), stepped(model, 0, saved), Progress(1), 1
    )
    assert refused(tmp_path, model, stepped(model, 0, found)) == (
        f"checkpoint {folder}: cannot be resumed: saved with other optimizers (optimizer.matrices)"
    )


def flip_a_bit(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


SAVED = ["model.safetensors", "optimizer.safetensors", "progress.json"]


@pytest.mark.parametrize("file", SAVED)
@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(b"short")])
def test_a_damaged_checkpoint_is_one_line(model, tmp_path, file, damage):
    folder = save(tmp_path, model)
    damage(folder / file)
    assert refused(tmp_path, model, stepped(model, 0)) == (
        f"checkpoint {folder}: cannot be resumed: {file} is damaged: it is not what was saved; "
        "none before it is whole; expected another output, or the run's folder deleted"
    )


@pytest.mark.parametrize("update", [3, '"12"', -3])
def test_a_progress_of_other_updates_is_one_line(model, tmp_path, update):
    file = save(tmp_path, model, 12) / "progress.json"
    file.write_text(file.read_text().replace('"update": 12', f'"update": {update}'))
    assert "progress.json is damaged" in refused(tmp_path, model, stepped(model, 0))


@pytest.mark.parametrize("file", [*SAVED, "digests.json"])
def test_a_checkpoint_without_one_of_its_files_is_one_line(model, tmp_path, file):
    folder = save(tmp_path, model)
    (folder / file).unlink()
    text = refused(tmp_path, model, stepped(model, 0))
    assert text.startswith(f"checkpoint {folder}: cannot be resumed: ")
    assert f"No such file or directory: '{folder / file}'; none before it" in text


def test_the_newest_whole_checkpoint_before_a_damaged_one_is_named(model, tmp_path):
    folders = [save(tmp_path, model, update, keep=4) for update in (3, 6, 9, 12)]
    for folder in folders[2:]:
        flip_a_bit(folder / "model.safetensors")
    text = refused(tmp_path, model, stepped(model, 0))
    assert text.startswith(f"checkpoint {folders[3]}: cannot be resumed: model.safetensors is dam")
    assert text.endswith(
        "; update-0000006 is whole: delete update-0000012, update-0000009 to go on from there"
    )
    for folder in folders[2:]:
        shutil.rmtree(folder)
    found = load_checkpoint(tmp_path, model.trained_tensors(), stepped(model, 0))
    assert found == (Progress(6), {})


def test_a_checkpoint_that_was_renamed_is_one_line(model, tmp_path):
    save(tmp_path, model, 3).rename(tmp_path / "update-0000009")
    text = refused(tmp_path, model, stepped(model, 0))
    assert ": it was saved as update-0000003; none before it is whole" in text
