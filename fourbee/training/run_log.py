"""A run's log, `log.jsonl`: a line an update that is told, a validation, or samples of text.

What it holds is what the weights went through: lines of updates that a killed run lost with its
last checkpoint are removed when it goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import TrainingError
from fourbee.foundation.json_files import parse_json

LOG = "log.jsonl"
_KINDS = ("validation", "samples")

Log = Callable[[Mapping[str, Any]], None]


@contextmanager
def open_log(folder: Path, update: int) -> Iterator[Log]:
    """Appends records to the folder's log, after removing those of updates beyond `update`."""
    path = folder / LOG
    kept = [json.dumps(record) + "\n" for record in read_log(path) if _update(record) <= update]
    folder.mkdir(parents=True, exist_ok=True)
    rewritten = folder / f"{LOG}.new"
    rewritten.write_text("".join(kept), encoding="utf-8")
    os.replace(rewritten, path)  # at once: a kill loses no line
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda record: print(json.dumps(record), file=file)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut by a kill is left out.

    TrainingError with file and line of any other that is no record.
    """
    if not path.is_file():
        return []
    *lines, cut = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if (record := _record(line)) is None:
            raise TrainingError(
                f"{path}:{number}: {line[:60].decode(errors='replace')!r}: expected a record as "
                "training writes it; with this line deleted the log can be read"
            )
        records.append(record)
    last = _record(cut)  # only its end may be missing
    return records if last is None else [*records, last]


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says, if that has the form of a record."""
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if _is_record(value) else None


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(inner := _inner(value), dict):
        return False
    items = inner.get("items") if "samples" in value else []
    return (
        type(inner.get("update")) is int
        and isinstance(items, list)
        and all(isinstance(one, dict) and {"prompt", "text"} <= set(one) for one in items)
    )


def _inner(record: Mapping[str, Any]) -> Any:
    """What an update, a validation or samples say of themselves."""
    return next((record[kind] for kind in _KINDS if kind in record), record)


def _update(record: Mapping[str, Any]) -> int:
    return int(_inner(record)["update"])
