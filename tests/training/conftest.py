"""A tiny tokenizer, tiny samples, and a recipe that trains in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourbee.text.bpe import QWEN_CONTROL_TOKENS, save_tokenizer, train_bpe
from fourbee.training.optimizers import OptimizerSettings
from fourbee.training.recipe import ModelShape
from fourbee.training.sources import Source
from fourbee.training.text import TextRecipe
from fourbee.training.tokenizer import chat_template

from .stages import SHAPE, run, table, write_data

WORDS = "red blue green one two three four cat dog house tree river".split()


def conversation(index: int) -> dict[str, Any]:
    """A conversation whose length and words depend on `index`."""
    word, count = WORDS[index % len(WORDS)], 1 + index % 5
    return {
        "skill": "say" if index % 2 else "echo",
        "messages": [
            {"role": "user", "content": f"say {word} {count} times"},
            {"role": "assistant", "content": " ".join([word] * count)},
        ],
    }


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [json.dumps(conversation(index)) for index in range(50)]
    save_tokenizer(folder, train_bpe(texts, 320, QWEN_CONTROL_TOKENS), chat_template())
    return folder


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(conversation(i)) + "\n" for i in range(60)))
    return path


class SilentReporter:
    """Hears everything, says nothing; calls `on_update` after each update."""

    def __init__(self, on_update: Any = None) -> None:
        self.on_update = on_update
        self.told: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []

    def preparing(self, message: str) -> None:
        self.told.append(message)

    def update(self, done: int, total: int, record: Any) -> None:
        self.records.append(dict(record))
        if self.on_update:
            self.on_update(done)

    def validation(self, record: Any) -> None:
        self.validations.append(dict(record))


@pytest.fixture
def recipe(tmp_path: Path, data_file: Path, tokenizer_folder: Path) -> TextRecipe:
    return TextRecipe(
        output=tmp_path / "run",
        data=(Source(data_file),),
        tokenizer=tokenizer_folder,
        model=ModelShape(64, 128, 2, 2, 1, 32, 256),
        optimizer=OptimizerSettings(learning_rate=3e-3, matrices="muon", warmup_updates=2),
        tokens_per_update=200,
        tokens_per_pack=1000,
        epochs=2,
        precision="float32",
        checkpoint_every=5,
        threads=1,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("abacus"))


@pytest.fixture(scope="session")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A model that has seen a few sums."""
    settings = table("sft", data, Path(), tmp_path_factory.mktemp("start"), updates=30)
    del settings["init_from"]
    return run(
        "sft", settings | {"tokenizer": str(tokenizer_folder), "model": SHAPE}, SilentReporter()
    )
