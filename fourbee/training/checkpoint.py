"""Training checkpoints: weights, optimizer and position in the data, written whole or not at all.

A checkpoint is a folder `update-N`. It appears under its name only when everything in it is on the
disk, so a run that is killed at any moment finds its last whole checkpoint. What is saved is what
is trained: with LoRA the adapters, not the weights that they adapt. Digests of its files tell
whether it still is what was saved. Folders of other names are the user's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourbee.foundation.errors import ModelFileError, TrainingError
from fourbee.foundation.json_files import read_json_object

WEIGHTS, MOMENTS = "model.safetensors", "optimizer.safetensors"
PROGRESS, DIGESTS = "progress.json", "digests.json"
_NAME = re.compile(r"update-([0-9]{7}|[1-9][0-9]{7,})")  # as `_name` writes it
_OTHER_OPTIMIZERS = "saved with other optimizers (optimizer.matrices)"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: whole updates done, and what they held."""

    update: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, over all sessions of the run


def save_checkpoint(
    run: Path,
    tensors: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    keep: int,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `run`/update-N with the trained `tensors`, and removes all but the `keep` newest.

    `state` is whatever else the run needs, as JSON. TrainingError where it cannot be written; the
    checkpoints that there are stay; they do too where the run has diverged.
    """
    if wrong := not_finite(tensors.items()):
        raise TrainingError(
            f"update {progress.update}: {wrong} holds NaN or infinity, so it is not saved; "
            "expected a lower optimizer.learning_rate, in another output"
        )
    final = run / _name(progress.update)
    partial = run / f"{final.name}.partial"
    saved = {"progress": asdict(progress), "state": dict(state or {})}
    files = {WEIGHTS: _contiguous(tensors), MOMENTS: _optimizer_tensors(optimizers)}
    try:
        for left in run.glob("update-*.partial"):  # by a run that was killed
            if _NAME.fullmatch(left.stem):
                shutil.rmtree(left)
        partial.mkdir(parents=True)
        for name, content in files.items():
            save_file(content, partial / name)
        (partial / PROGRESS).write_text(json.dumps(saved), encoding="utf-8")
        digests = {path.name: _digest(path) for path in partial.iterdir()}
        (partial / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(one.nbytes for content in files.values() for one in content.values())
        raise TrainingError(
            f"checkpoint {final}: cannot be written: {_reason(error)}: {needed:,} bytes needed, "
            f"{shutil.disk_usage(run).free:,} free; the run can be resumed from "
            f"{_name_of_last(run)}"
        ) from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(
    run: Path, tensors: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[Progress, Mapping[str, Any]] | None:
    """Restores the newest checkpoint of `run` into `tensors` and optimizers; None without one.

    Also returns the saved `state`. TrainingError for one that is damaged or of another run.
    """
    found = checkpoints(run)
    if not found:
        return None
    folder = found[-1]
    if wrong := _damage(folder):
        raise TrainingError(f"checkpoint {folder}: cannot be resumed: {wrong}; {_way_on(found)}")
    try:
        weights, moments = load_file(folder / WEIGHTS), load_file(folder / MOMENTS)
        saved = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        progress, state = Progress(**saved["progress"]), saved["state"]
        if {name: one.shape for name, one in weights.items()} != {
            name: one.shape for name, one in tensors.items()
        }:
            raise ValueError("saved by a run of another model, or with other lora settings")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(weights[name])
        _restore_optimizers(optimizers, moments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        line = str(error).splitlines()[0]
        raise TrainingError(f"checkpoint {folder}: cannot be resumed: {line}") from error
    return progress, state


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; an empty folder is none."""
    named = [path for path in run.glob("update-*") if _NAME.fullmatch(path.name)]
    found = [path for path in named if path.is_dir() and any(path.iterdir())]
    return sorted(found, key=lambda path: int(path.name.removeprefix("update-")))


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, one in tensors if not one.isfinite().all()), None)


def _name(update: int) -> str:
    return f"update-{update:07d}"


def _damage(folder: Path) -> str:
    """What of a checkpoint is not as it was saved; empty for a whole one."""
    try:
        digests = read_json_object(folder / DIGESTS)
        for name in (WEIGHTS, MOMENTS, PROGRESS):
            if digests.get(name) != _digest(folder / name):
                return f"{name} is damaged: it is not what was saved"
        update = read_json_object(folder / PROGRESS)["progress"]["update"]
    except (OSError, ModelFileError) as error:
        return str(error)
    return "" if folder.name == _name(update) else f"it was saved as {_name(update)}"


def _way_on(found: Sequence[Path]) -> str:
    """How a run whose last checkpoint is damaged goes on from one of those before it."""
    newer: list[str] = []
    for folder in reversed(found):
        if not _damage(folder):
            return f"{folder.name} is whole: delete {', '.join(newer)} to go on from there"
        newer.append(folder.name)
    return "none before it is whole; expected another output, or the run's folder deleted"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                state[f"{number}.{index}.{name}"] = value
    return _contiguous(state)


def _restore_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    states: dict[int, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        number, index, name = key.split(".", 2)
        states.setdefault(int(number), {}).setdefault(int(index), {})[name] = tensor
    groups: list[list[dict[str, Any]]] = [
        optimizer.state_dict()["param_groups"] for optimizer in optimizers
    ]
    if not set(states) <= set(range(len(optimizers))):
        raise ValueError(_OTHER_OPTIMIZERS)
    for place, optimizer in enumerate(optimizers):
        state = states.get(place, {})
        # Of every parameter, or of none as long as all updates were left out.
        if state and set(state) != {index for one in groups[place] for index in one["params"]}:
            raise ValueError(_OTHER_OPTIMIZERS)
        optimizer.load_state_dict({"state": state, "param_groups": groups[place]})


def _name_of_last(run: Path) -> str:
    found = checkpoints(run)
    return found[-1].name if found else "its beginning"


def _reason(error: Exception) -> str:
    """What the system says, in a line; safetensors' errors quote it."""
    full = "No space left on device"
    return full if full in str(error) else str(error).splitlines()[0]


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
