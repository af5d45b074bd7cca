"""From a process's start to its first answer with a packed file, and the memory that it takes.

The server is started as users start it. Anonymous memory (RssAnon of Linux) is what no file stands
behind: packed weights are mapped, so that they must not be in it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourbee.benchmarks.checkpoint import write_packed, write_tokenizer
from fourbee.benchmarks.shapes import shape_config
from fourbee.engine.ledger import page_bytes
from fourbee.foundation.errors import FourbeeError
from fourbee.kernels.attention_pattern import PAGE_KEYS

_READY = re.compile(r"ready: (http://\S+)")
_SAMPLED_SECONDS = 0.02


@dataclass(frozen=True)
class Start:
    """Seconds from the process's start, and anonymous bytes of all its processes."""

    ready_seconds: float
    answer_seconds: float  # to the first answer, one token to a prompt of one
    ready_bytes: int
    most_bytes: int  # while a prompt that fills the context was read and answered


def measure_starts(shape: str, context: int, rounds: int) -> dict[str, Any]:
    """The numbers of some starts, by name; the first, which warms the page cache, is left out."""
    shape_config(shape)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / shape
        folder.mkdir()
        packed = write_packed(folder, shape)
        tokenizer = write_tokenizer(folder)
        _, *starts = (
            measure_start(folder, context if number == 1 else 0) for number in range(rounds + 1)
        )
        file = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    most, kept = max(one.most_bytes for one in starts), kv_bytes(shape, context)
    return {
        "tokenizer": tokenizer,
        "ready_seconds": _spread([one.ready_seconds for one in starts]),
        "answer_seconds": _spread([one.answer_seconds for one in starts]),
        "context": context,
        "packed_bytes": file,
        "kv_bytes": kept,
        "ready_bytes": statistics.median(one.ready_bytes for one in starts),
        "most_bytes": most,
        "beyond_bytes": most + file - packed - kept,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def kv_bytes(shape: str, context: int) -> int:
    """Keys and values of so many positions: int8, with a scale of four bytes each."""
    return page_bytes(shape_config(shape), "int8") * context // PAGE_KEYS


def measure_start(folder: Path, context: int) -> Start:
    """Serves the folder once; with `context` 0 no long prompt is read. FourbeeError if it fails."""
    command = [sys.executable, "-m", "fourbee", "serve", "--model", str(folder), "--port", "0"]
    started = time.perf_counter()
    with serving(command) as (process, url):
        ready = time.perf_counter() - started
        anonymous = anonymous_bytes(process.pid)
        _complete(url, folder.name, [1], 1)
        answered = time.perf_counter() - started
        with _most_anonymous_bytes(process.pid) as most:
            if context:
                tokens = [1000 + index * 7 % 1000 for index in range(max(1, context - 8))]
                _complete(url, folder.name, tokens, 8)
    return Start(ready, answered, anonymous, max(most))


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address; ended whatever happens."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            told: list[str] = []
            for line in process.stderr:
                told.append(line.strip())
                if found := _READY.search(line):
                    yield process, found[1]
                    break
            else:
                raise FourbeeError(f"the server ended before it was ready: {' / '.join(told)}")
        finally:
            process.kill()


def _complete(url: str, model: str, prompt: list[int], tokens: int) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and all below it."""
    total = 0
    for one in _family(pid):
        status = Path(f"/proc/{one}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            yield from _family(int(child))


@contextmanager
def _most_anonymous_bytes(pid: int) -> Iterator[list[int]]:
    """What is looked up again and again while the block runs."""
    seen, done = [anonymous_bytes(pid)], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLED_SECONDS):
            seen.append(anonymous_bytes(pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
