"""The name of a model's weights: a digest of the files that they lie in.

Reading gigabytes takes seconds, so a digest is noted beside the size and the time of its file and
taken from there the next time. A file that was changed but has the same size and the same time to
the nanosecond is not noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fourbee.foundation.json_files import parse_json


def weights_digest(files: Sequence[Path], notes: Path) -> str:
    """Of the files' bytes, in their order, whatever their names.

    `notes` is where digests are noted; where it cannot be written they are made anew.
    """
    known = _read(notes)
    digests = {}
    for file in files:
        state = file.stat()
        name = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
        digests[name] = known.get(name) or _digest(file)
    if not digests.keys() <= known.keys():
        with contextlib.suppress(OSError):
            notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            notes.write_text(json.dumps(known | digests, indent=1) + "\n", encoding="utf-8")
    return hashlib.blake2b("\n".join(digests.values()).encode(), digest_size=32).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _read(notes: Path) -> dict[str, str]:
    try:
        found = parse_json(notes.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}
