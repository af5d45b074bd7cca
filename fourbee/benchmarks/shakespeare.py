"""Two training loops on one text for the same minutes: ours, and nanoGPT's written plainly.

Both at once, one thread each, so that both have the same machine. The plain loop has nanoGPT's
shape and settings for a CPU; ours is what we would do with that time. What is compared is the loss
of a character of the last tenth of the text, over wall-clock time, measuring included.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import build
from fourbee.training.checkpoint import checkpoints
from fourbee.training.export import export_model, fill
from fourbee.training.learner import Learner
from fourbee.training.pretrain import pretrain
from fourbee.training.text import TextRecipe
from fourbee.training.tokenizer import TokenizerRecipe, train_tokenizer

# Shares of the time: of the flat stretch, and of the rest that the decay is planned to fill, as
# machines slow down. More updates a second than any machine makes.
_FLAT, _FILLED, _MOST_UPDATES_A_SECOND = 0.55, 0.92, 10

MODEL: Mapping[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 48,
    "max_position_embeddings": 256,
}
OURS: Mapping[str, Any] = {
    "tokens_per_update": 2048,
    "tokens_per_pack": 2048,
    "precision": "float32",
    "threads": 1,
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
    """A flat stretch until `_FLAT` of the time, whose pace tells how long the decay may be."""
    started = time.monotonic()
    run = folder / f"ours-{int(time.time())}"
    table = {
        **OURS,
        "data": [str(folder / "train.txt")],
        "tokenizer": str(folder / "tokenizer"),
        "validation": {"path": str(folder / "val.txt")},
        "validate_every": 150,
        "checkpoint_every": 10**6,
    }
    curve = _Curve(started, _FLAT * seconds)
    # The plan of a run is made whole: no longer than it can be needed.
    updates = int(seconds * _MOST_UPDATES_A_SECOND)
    flat = build(TextRecipe, table | {"output": str(run), "updates": updates, "model": MODEL})
    _until_stopped(replace(flat, optimizer=replace(flat.optimizer, decay_fraction=0.0)), curve)
    last = checkpoints(run)[-1]
    pace = (time.monotonic() - started) / int(last.name.partition("-")[2])
    left = seconds - (time.monotonic() - started)
    start = folder / "flat"
    _export(last, flat, start)
    decay = build(
        TextRecipe,
        table
        | {
            "output": f"{run}-decay",
            "init_from": str(start),
            "updates": max(20, int(_FILLED * left / pace)),
            "seed": 1,
        },
    )
    settings = replace(decay.optimizer, warmup_updates=10, decay_fraction=0.98)
    pretrain(replace(decay, optimizer=settings), curve)
    return curve.points


def _until_stopped(recipe: TextRecipe, curve: _Curve) -> None:
    """Trains until `curve` interrupts the run; another's Ctrl-C goes on to whoever started both."""
    try:
        pretrain(recipe, curve)
    except KeyboardInterrupt:
        if not curve.stopped:
            raise


def _export(checkpoint: Path, recipe: TextRecipe, folder: Path) -> None:
    """The weights of a training checkpoint as a model's folder."""
    model = Learner.from_recipe(recipe).model
    stored = load_file(checkpoint / "model.safetensors")
    for name, tensor in model.trained_tensors().items():
        fill(tensor, stored[name], name, checkpoint)
    export_model(folder, model, recipe)


class _Curve:
    """Notes the validation loss over wall-clock time; interrupts the run when `until` is over."""

    def __init__(self, started: float, until: float) -> None:
        self._started, self._until = started, until
        self.stopped = False
        self.points: list[dict[str, float]] = []

    def preparing(self, message: str) -> None:
        pass

    def update(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        if time.monotonic() - self._started > self._until and not self.stopped:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGINT)

    def validation(self, record: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._started
        self.points.append(
            {
                "seconds": seconds,
                "processor_seconds": time.process_time(),
                "loss": record["all"]["loss"],
            }
        )
