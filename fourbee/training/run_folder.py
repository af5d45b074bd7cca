"""The folder of a run belongs to one process at a time, and to one stage and recipe.

A run is a pure function of both; taken up with another one it would be the run of neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fourbee.foundation.errors import TrainingError
from fourbee.foundation.json_files import read_json_object
from fourbee.training.checkpoint import checkpoints
from fourbee.training.recipe import TrainRecipe

RECIPE, CONTENTS = "recipe.json", "contents.json"
# Of larger files blocks are read, this many: weights that were trained differ everywhere.
_WHOLE, _BLOCK, _BLOCKS = 256 << 20, 1 << 20, 64
# What may change between two sessions of a run: where and how fast it runs, what is told of it,
# and how the result is written.
_FREE = frozenset(
    """output device threads workers checkpointing log_every validate_every
    checkpoint_every keep_checkpoints validation samples watched watch_kl export_type""".split()
)
_ABSENT = "nothing"


@contextmanager
def own_run(stage: str, recipe: TrainRecipe) -> Iterator[None]:
    """Holds the output folder, so that no other run writes there; it must be this one's.

    TrainingError, naming the other process, or the first setting that differs from those that the
    folder's checkpoints were made with. The lock of a process that was killed is gone with it.
    """
    run = recipe.output
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"output = {run}: {error.strerror}: expected a folder, or where one can be made"
        ) from None
    owner, lock = run / "owner.pid", FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "unknown"
        raise TrainingError(
            f"output = {run}: another run (process {who}) is writing there; expected a folder of "
            "its own, or that one to end first"
        ) from None
    with lock:
        owner.write_text(str(os.getpid()), encoding="utf-8")
        try:
            _keep_recipe(run, {"stage": stage} | _fixed(recipe))
            yield
        finally:
            owner.unlink(missing_ok=True)


def _keep_recipe(run: Path, fixed: Mapping[str, Any]) -> None:
    """Writes the recipe down; if there are checkpoints already, only compares it."""
    now = _flat(fixed)
    before = _noted(run, RECIPE, now)
    for key in [*now, *before]:
        was, given = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if was != given:
            raise TrainingError(
                f"{key} = {given}: the run in {run} was begun with {was}; expected its own recipe, "
                "another output, or that folder deleted"
            )


def keep_contents(recipe: TrainRecipe) -> None:
    """Notes what the files that a run depends on hold; if it has checkpoints, compares it.

    TrainingError naming the first that holds something else now.
    """
    now = {
        f"{key} = {one}": _content(one)
        for key, one in _leaves(_fixed(recipe)).items()
        if isinstance(one, Path) and one.exists()
    }
    before = _noted(recipe.output, CONTENTS, now)
    for name, content in now.items():
        if before.get(name, content) != content:
            raise TrainingError(
                f"{name}: it holds something else than when the run in {recipe.output} was begun; "
                "expected what it held, another output, or that folder deleted"
            )


def expect_folder(run: Path) -> None:
    """TrainingError where the folder of a run was deleted as it goes on: it writes no new one."""
    if not (run / RECIPE).is_file():
        raise TrainingError(
            f"output = {run}: deleted, or its {RECIPE}, while the run goes on; it ends here, as "
            "what it would save could not be resumed"
        )


def _noted(run: Path, name: str, now: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a file of the run noted as it began; without checkpoints, `now`, which it notes."""
    path = run / name
    if not checkpoints(run):
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return now
    try:
        return read_json_object(path)
    except FileNotFoundError:
        raise TrainingError(
            f"{path}: no such file beside the run's checkpoints, so they may be those of another "
            f"recipe; expected the {name} that the run wrote, another output, or that folder "
            "deleted"
        ) from None


def _content(path: Path) -> str:
    """A digest of a file, or of the files of a folder."""
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            for number in range(_BLOCKS):
                stream.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def _fixed(recipe: TrainRecipe) -> dict[str, Any]:
    """What the weights depend on."""
    return {key: value for key, value in asdict(recipe).items() if key not in _FREE}


def _flat(value: Any) -> dict[str, Any]:
    """Every leaf by its dotted key, as JSON keeps it."""
    leaves = _leaves(value).items()
    return {key: str(leaf) if isinstance(leaf, Path) else leaf for key, leaf in leaves}


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Every leaf by its dotted key."""
    if isinstance(value, Mapping):
        items = [(f"{key}.{name}" if key else str(name), one) for name, one in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{key}[{index}]", one) for index, one in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for path, one in items for name, leaf in _leaves(one, path).items()}
