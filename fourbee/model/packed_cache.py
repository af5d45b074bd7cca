"""The models that `--quantize` packed: made on a first start, mapped on later ones.

Each is a folder `$FOURBEE_HOME/packed/NAME-KIND-KEY` (in `~/.cache/fourbee` without that variable),
one for a source's path and form, and may be deleted at any time. Its `packed.json` records what it
was made from, by which packer, and its own files: where names, sizes or times say otherwise now, it
is made anew. Reading all bytes to find a flipped one would cost what the cache saves. Not here: the
packing (`quantize.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import CapacityError, UsageError
from fourbee.foundation.json_files import parse_json
from fourbee.kernels.packed import PACKER
from fourbee.model.checkpoint_files import COMPANIONS, CONFIG_FILE, Progress
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_file import is_gguf
from fourbee.model.hub import store
from fourbee.model.packed_format import PackedFormat
from fourbee.model.quantize import NotWrittenError, quantize_model, weight_files

logger = logging.getLogger(__name__)

_RECORD = "packed.json"
_LABEL_BYTES = 80


def packed_folder(
    source: Path, form: PackedFormat, progress: Progress | None = None
) -> Path | None:
    """The folder of the model packed like this, made on the first call.

    Other processes that want it wait for the one that makes it. None where there is nothing to
    keep: the source is `fourbee-packed` already, cannot be packed like this (loading it says why),
    or the folder cannot be written, which is one warning in the log. ModelFileError for a source
    that is damaged.
    """
    source = source.resolve()
    if not is_gguf(source) and isinstance(Qwen3Config.load(source).quantization, PackedFormat):
        return None
    folder = store().parent / "packed" / f"{_label(source)}-{form.kind}-{_key(source, form)}"
    made_from = _made_from(source)
    if _state(folder, made_from) == "whole":
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            state = _state(folder, made_from)  # another process may have made it meanwhile
            if state == "damaged":
                logger.warning("%s: damaged or incomplete: it is made anew", folder)
            if state != "whole":
                _make(source, folder, form, made_from, progress)
    except (OSError, NotWrittenError, CapacityError) as error:
        told = f"{folder}: {error.strerror}" if isinstance(error, OSError) else error
        logger.warning("the packed model is not kept for later starts: %s", told)
        return None
    except UsageError:
        return None
    return folder


def _make(
    source: Path, folder: Path, form: PackedFormat, made_from: Any, progress: Progress | None
) -> None:
    logger.info("packing %s into %s, once, kept in %s", source.name, form.kind, folder)
    new = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        quantize_model(source, new, form, progress)
        record = {"made_from": made_from, "files": _described(sorted(new.iterdir()))}
        (new / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        # Whoever has the old one mapped keeps its bytes.
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _state(folder: Path, made_from: Any) -> str:
    """Whether the folder is "absent", "stale" (of another source), "damaged" or "whole"."""
    if not folder.is_dir():
        return "absent"
    try:
        record = parse_json((folder / _RECORD).read_bytes())
        if record["made_from"] != made_from:
            return "stale"
        files = [folder / name for name, _, _ in record["files"]]
        return "whole" if files and _described(files) == record["files"] else "damaged"
    except (OSError, ValueError, TypeError, KeyError):
        return "damaged"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process at the latest."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that packs %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _label(source: Path) -> str:
    """For people: the source's name, as much of it as leaves room in a file's name."""
    name = source.name if source.is_dir() else source.stem
    return os.fsencode(name)[:_LABEL_BYTES].decode(errors="ignore")


def _key(source: Path, form: PackedFormat) -> str:
    named = json.dumps([str(source), form.to_json()])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _made_from(source: Path) -> Any:
    """What of the source and of this program decides the packed bytes, as JSON reads it back."""
    files = weight_files(source)
    if source.is_dir():
        named = [source / name for name in (CONFIG_FILE, *COMPANIONS)]
        files += [file for file in named if file.is_file()]
    return {"packer": PACKER, "source": str(source), "files": _described(files)}


def _described(files: Sequence[Path]) -> list[list[Any]]:
    """Name, size in bytes and time of change in ns of each file."""
    stats = [(file, file.stat()) for file in files]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
