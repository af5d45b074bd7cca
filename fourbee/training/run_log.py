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
    """The records of a log; a last line that was cut by a kill is left out."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def _update(record: Mapping[str, Any]) -> int:
    inner = next((record[kind] for kind in _KINDS if kind in record), record)
    return int(inner["update"])
