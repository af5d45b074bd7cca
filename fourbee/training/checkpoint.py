"""Training checkpoints: weights, optimizer and position in the data, written whole or not at all.

A checkpoint is a folder `update-N`. It appears under its name only when everything in it is on the
disk, so a run that is killed at any moment finds its last whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourbee.foundation.errors import TrainingError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: whole updates done, and what they held."""

    update: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, over all sessions of the run


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    keep: int,
) -> Path:
    """Writes `run`/update-N and removes all but the `keep` newest."""
    final = run / f"update-{progress.update:07d}"
    partial = run / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(dict(model.named_parameters())), partial / "model.safetensors")
    save_file(_optimizer_tensors(optimizers), partial / "optimizer.safetensors")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)))
    for path in partial.iterdir():
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(run)
    for old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(
    run: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Progress | None:
    """Restores the newest checkpoint of `run`; None when there is none."""
    found = _checkpoints(run)
    if not found:
        return None
    folder = found[-1]
    try:
        weights = load_file(folder / "model.safetensors")
        state = load_file(folder / "optimizer.safetensors")
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        model.load_state_dict(weights, strict=True)
        _restore_optimizers(optimizers, state)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        line = str(error).splitlines()[0]
        raise TrainingError(f"checkpoint {folder}: cannot be resumed: {line}") from error
    return progress


def _checkpoints(run: Path) -> list[Path]:
    return sorted(p for p in run.glob("update-*") if p.suffix != ".partial")


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
    # Every parameter has a state after one update; other ones are of other optimizers.
    expected = [{index for group in of_one for index in group["params"]} for of_one in groups]
    if {number: set(state) for number, state in states.items()} != dict(enumerate(expected)):
        raise ValueError("saved with other optimizers (optimizer.matrices)")
    for place, optimizer in enumerate(optimizers):
        optimizer.load_state_dict({"state": states[place], "param_groups": groups[place]})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
