"""Where models are: a folder, a GGUF file, the embedded model, or the store that `pull` fills.

The store is `$FOURBEE_HOME/models/OWNER/NAME`, in `~/.cache/fourbee` without that variable. A model
appears there only when it is whole; until then its files wait under `models/.partial`, where an
interrupted pull goes on the next time. One pull of a model runs at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourbee.foundation.errors import CapacityError, ModelFileError, UsageError
from fourbee.foundation.json_files import parse_json
from fourbee.model.checkpoint_files import CONFIG_FILE, Progress
from fourbee.model.gguf_file import SUFFIX, is_gguf

if TYPE_CHECKING:
    from fourbee.model.download import Repository

EMBEDDED = "fourbee-mini"
# Not importlib.resources: an editable install splits the package over two folders.
MODELS = Path(__file__).resolve().parent.parent / "models"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RECORD = "download.json"  # the commit of a pulled folder, and its files' digests
SPARE_BYTES = 100_000_000  # stay free on the disk


def refuse_full_disk(target: Path, size: int) -> None:
    """CapacityError unless the disk of `target`'s folder has room for so many bytes."""
    free = shutil.disk_usage(target.parent).free
    if size + SPARE_BYTES > free:
        raise CapacityError(
            f"{target}: {size / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free on this disk, of "
            f"which {SPARE_BYTES / 1e9:.2f} GB are to stay free"
        )


def resolve_model(name: str | None) -> Path:
    """A model's folder or GGUF file: `fourbee-mini` or None, a path, or an id `owner/name` pulled.

    Raises UsageError; ModelFileError where the package came without the embedded model.
    """
    if name is None or name == EMBEDDED:
        return _embedded()
    path = Path(name).expanduser()
    named_gguf = is_gguf(path)
    if path.is_dir() or (named_gguf and path.is_file()):
        return path
    if path.exists():
        raise UsageError(
            f"model {name!r}: a file; expected a folder with {CONFIG_FILE} or a {SUFFIX} file",
            "model",
        )
    if named_gguf:
        raise UsageError(f"model {name!r}: no such file", "model")
    if not _ID.fullmatch(name):
        raise UsageError(
            f"model {name!r}: no such folder; expected a folder with {CONFIG_FILE} or a hub id "
            "such as Qwen/Qwen3-0.6B",
            "model",
        )
    stored = store() / name
    if not stored.is_dir():
        raise UsageError(
            f"model {name!r}: no such folder, and not downloaded: run `fourbee pull {name}`",
            "model",
        )
    return stored


def store() -> Path:
    """The folder of pulled models; it need not exist."""
    home = os.environ.get("FOURBEE_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "fourbee") / "models"


def pull(model_id: str, revision: str = "main", progress: Progress | None = None) -> Path:
    """Downloads a model from the hub into the store, and returns its folder.

    Only safetensors, JSON, chat template and tokenizer files: nothing that could run. Goes on where
    an interrupted pull ended, does nothing when the store has this commit, and fetches what changed
    when it has another. `progress` is told a file, and bytes done and in all of the whole pull.
    Raises UsageError (also while another process pulls this model), ModelFileError (no connection,
    damage), CapacityError (no room on the disk).
    """
    # Imports that take a second and that only a pull needs.
    from fourbee.model import download

    if not _ID.fullmatch(model_id):
        raise UsageError(f"model {model_id!r}: expected a hub id such as Qwen/Qwen3-0.6B", "model")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError(f"model {model_id!r}: HF_HUB_OFFLINE is set; unset it to download")
    final = store() / model_id
    try:
        with download.open_client() as client:
            repository = download.find_repository(client, model_id, revision)
            if _recorded(final).get("commit") == repository.commit:
                return final
            with _alone(model_id):
                partial = _partial_folder(repository)
                _link_unchanged(repository, final, partial)
                _check_room(repository, partial)
                download.fetch_files(client, repository, partial, progress)
                _publish(repository, partial, final)
    except OSError as error:
        raise ModelFileError(f"{store()}: cannot be written: {error.strerror}") from error
    return final


def _embedded() -> Path:
    folder = MODELS / EMBEDDED
    if not folder.is_dir():
        raise ModelFileError(
            f"model {EMBEDDED!r}: not in this installation (no {folder}); name another model"
        )
    return folder


@contextlib.contextmanager
def _alone(model_id: str) -> Iterator[None]:
    """Keeps other processes from pulling the same model; ends with this process at the latest."""
    from filelock import FileLock, Timeout

    lock = store() / ".partial" / f"{model_id}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"model {model_id!r}: another `fourbee pull` of it is running; wait for its end",
            "model",
        ) from None


def _partial_folder(repository: Repository) -> Path:
    """Where files of this commit wait; those of other commits are removed."""
    folder = store() / ".partial" / repository.id / repository.commit
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)
    return folder


def _recorded(folder: Path) -> dict[str, Any]:
    """What the last pull wrote of a folder; empty where there was none."""
    try:
        record = parse_json((folder / _RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _link_unchanged(repository: Repository, old: Path, partial: Path) -> None:
    """Takes over files that the store has of an older commit."""
    recorded = _recorded(old).get("files")
    digests = recorded if isinstance(recorded, dict) else {}
    for file in repository.files:
        if digests.get(file.name) == file.digest and not (partial / file.name).exists():
            # Where the disk knows no links, the file is downloaded.
            with contextlib.suppress(OSError):
                os.link(old / file.name, partial / file.name)


def _check_room(repository: Repository, partial: Path) -> None:
    present = sum(file.stat().st_size for file in partial.iterdir())
    needed = sum(file.size for file in repository.files) - present
    free = shutil.disk_usage(partial).free
    if needed > 0 and needed + SPARE_BYTES > free:
        raise CapacityError(
            f"model {repository.id!r}: {needed / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free "
            f"in {store()}, of which {SPARE_BYTES / 1e9:.2f} GB are to stay free; free some, or "
            "set FOURBEE_HOME to another disk"
        )


def _publish(repository: Repository, partial: Path, final: Path) -> None:
    """Puts the whole folder in its place; the place is empty for a moment, never half full."""
    record = {
        "id": repository.id,
        "commit": repository.commit,
        "files": {file.name: file.digest for file in repository.files},
    }
    (partial / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = partial.with_name("replaced")
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    shutil.rmtree(replaced, ignore_errors=True)
