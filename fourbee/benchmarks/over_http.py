"""A decoding step as clients of a server see it: several streams at once, beside the kernels alone.

The server is started as users start it, with random weights in a packed file; each stream is a
connection that reads server-sent events. A step is the time between two tokens of a stream. What
the kernels take of a step of this batch is measured in this process, through the same engine.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fourbee.benchmarks.checkpoint import write_packed, write_tokenizer
from fourbee.benchmarks.outside import STEPS, measure_outside, random_llm
from fourbee.benchmarks.start import serving

_TOKENS = 200


@dataclass(frozen=True)
class OverHttp:
    """Seconds of a step: over HTTP, in process, and in the kernels; the share outside of these."""

    batch: int
    http_seconds: float
    engine_seconds: float
    kernel_seconds: float

    @property
    def outside(self) -> float:
        return 1 - self.kernel_seconds / self.http_seconds


def measure_over_http(shape: str, batch: int, rounds: int, threads: int | None) -> OverHttp:
    """Rounds of all streams at once, each after one of the engine alone; medians."""
    llm = random_llm(shape, threads)
    http, engine, kernels = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        write_packed(Path(folder), shape)
        write_tokenizer(Path(folder))
        command = [sys.executable, "-m", "fourbee", "serve", "--model", folder, "--port", "0"]
        with serving(command) as (_, url):
            for number in range(rounds + 1):  # one to warm up
                alone = measure_outside(llm, batch, 1)
                step = _round(url, Path(folder).name, batch)
                if number:
                    http.append(step)
                    engine.append(alone.step_seconds)
                    kernels.append(alone.step_seconds * (1 - alone.median))
    return OverHttp(batch, *(statistics.median(one) for one in (http, engine, kernels)))


def _round(url: str, model: str, batch: int) -> float:
    """The median time between two tokens, of all streams."""
    gaps: list[list[float]] = [[] for _ in range(batch)]
    streams = [
        threading.Thread(target=_stream, args=(url, model, 17 + row, gaps[row]))
        for row in range(batch)
    ]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    # The first and the last tokens of a stream are not beside all the others.
    return statistics.median(gap for one in gaps for gap in one[STEPS // 4 : -STEPS // 4])


def _stream(url: str, model: str, token: int, gaps: list[float]) -> None:
    body = {
        "model": model, "prompt": [token], "max_tokens": _TOKENS, "temperature": 0.7, "top_k": 20,
        "top_p": 0.8, "seed": token, "ignore_eos": True, "stream": True, "logprobs": 0,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        before = None
        for line in answer:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                if before is not None:
                    gaps.append(now - before)
                before = now
