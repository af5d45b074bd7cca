"""Two training loops on one text for the same minutes: ours, and nanoGPT's written plainly.

Both at once, one thread each, so that both have the same machine. The plain loop has nanoGPT's
shape and settings for a CPU; ours is what we would do with that time. What is compared is the loss
of a character of the last tenth of the text, over wall-clock time, measuring included.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import build
from fourbee.training.pretrain import pretrain
from fourbee.training.text import TextRecipe
from fourbee.training.tokenizer import TokenizerRecipe, train_tokenizer

# Updates from which the pace is taken, and the share of the time that they may fill: machines
# slow down.
_PACED, _FILLED = 20, 0.9

OURS: Mapping[str, Any] = {
    "tokens_per_update": 2048,
    "tokens_per_pack": 2048,
    "precision": "float32",
    "threads": 1,
    "model": {
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 48,
        "max_position_embeddings": 256,
    },
    "optimizer": {
        "matrices": "muon",
        "learning_rate": 4e-3,
        "matrix_rate": 2.0,
        "warmup_updates": 50,
        "decay_fraction": 0.6,
    },
}


def prepare(text: Path, folder: Path) -> None:
    """Writes the first nine tenths and the last tenth as text, as numbers, and a tokenizer."""
    if not text.is_file():
        raise UsageError(f"--text {text}: no such file")
    data = text.read_bytes()
    characters = (gzip.decompress(data) if text.suffix == ".gz" else data).decode("utf-8")
    alphabet = {character: index for index, character in enumerate(sorted(set(characters)))}
    cut = int(0.9 * len(characters))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", characters[:cut]), ("val", characters[cut:])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
        np.save(folder / f"{name}.npy", np.array([alphabet[one] for one in part], np.uint16))
    train_tokenizer(
        TokenizerRecipe(folder / "tokenizer", (folder / "train.txt",), vocab_size=265, han=False)
    )


def compare(folder: Path, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Trains both at once; their curves, `{"seconds", "loss"}` by name, also in `folder`."""
    words = [sys.executable, "-m", "fourbee.benchmarks.plain_loop", str(folder)]
    with subprocess.Popen([*words, "--seconds", str(seconds)]) as plain:
        ours = _train_ours(folder, seconds)
        if plain.wait() != 0:
            raise UsageError(f"the plain loop ended with code {plain.returncode}")
    lines = (folder / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    curves = {"fourbee": ours, "plain": [json.loads(line) for line in lines]}
    (folder / "curves.json").write_text(json.dumps(curves), encoding="utf-8")
    return curves


def _train_ours(folder: Path, seconds: float) -> list[dict[str, float]]:
    started = time.monotonic()
    table = {
        **OURS,
        "output": str(folder / f"ours-{int(time.time())}"),
        "data": [str(folder / "train.txt")],
        "tokenizer": str(folder / "tokenizer"),
        "validation": {"path": str(folder / "val.txt")},
        "validate_every": 10**9,
        "checkpoint_every": 10**9,
    }
    paced = _Curve(started)
    pretrain(
        build(TextRecipe, table | {"output": table["output"] + "-pace", "updates": _PACED}), paced
    )
    pace = paced.seconds_of_update
    updates = max(60, int(_FILLED * (seconds - (time.monotonic() - started)) / pace))
    recipe = build(TextRecipe, table | {"updates": updates})
    curve = _Curve(started)
    pretrain(replace(recipe, validate_every=max(1, updates // 30)), curve)
    return curve.points


class _Curve:
    """Notes the validation loss over wall-clock time."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.points: list[dict[str, float]] = []
        self.seconds_of_update = 0.0

    def preparing(self, message: str) -> None:
        pass

    def update(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        # The first ones make room for what stays.
        if done > total // 4:
            share = 1 / (done - total // 4)
            self.seconds_of_update += share * (record["seconds_of_update"] - self.seconds_of_update)

    def validation(self, record: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._started
        self.points.append(
            {
                "update": record["update"],
                "seconds": seconds,
                "processor_seconds": time.process_time(),
                "loss": record["all"]["loss"],
            }
        )
