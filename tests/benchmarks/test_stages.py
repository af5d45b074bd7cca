"""The bench of the stages: what it runs is what the recipes say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fourbee.benchmarks.stages import Bench, small_languages
from fourbee.foundation.errors import TrainingError

ROOT = Path(__file__).resolve().parents[2]
FEW = {"conversations": 60, "pairs": 1, "tasks": 1, "held_out": 4}


class Silent:
    def preparing(self, message: str) -> None:
        pass

    def update(self, done: int, total: int, record: Any) -> None:
        pass

    def validation(self, record: Any) -> None:
        pass


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Of abacus' own recipes, with less data and a tokenizer for shorter texts."""
    recipes = tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes/abacus", recipes)
    (recipes / "data.toml").write_text("".join(f"{key} = {FEW[key]}\n" for key in FEW))
    text = (recipes / "tokenizer.toml").read_text()
    (recipes / "tokenizer.toml").write_text(text.replace("= 128", "= 96"))
    return Bench(recipes, tmp_path / "runs", 1, Silent())


def test_a_run_is_written_again_and_another_recipe_is_refused(bench):
    few: dict[str, Any] = {"updates": 2, "tokens_per_update": 200, "validate_every": 2}
    model = bench.run("sft", "sft", 0, **few)
    assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 96
    before = (model / "model.safetensors").read_bytes()
    assert bench.run("sft", "sft", 0, **few) == model
    assert (model / "model.safetensors").read_bytes() == before
    with pytest.raises(TrainingError, match="updates"):
        bench.run("sft", "sft", 0, **few | {"updates": 3})
    taught = bench.run("sft", "taught", 0, init_from=str(model), **few)  # of that model's shape
    assert (taught / "config.json").is_file()


def test_languages_are_trained_with_the_threads_of_the_bench(bench, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def train(told: str, train: Any, recipe: Any) -> Path:
        assert recipe.threads == 3
        raise Asked

    bench.threads = 3
    bench.texts = {name: tmp_path / f"{name}.txt" for name in ("en", "th")}
    for path in bench.texts.values():
        path.write_text("one two three four " * 50)
    monkeypatch.setattr(bench, "train", train)
    with pytest.raises(Asked):
        small_languages(bench, range(1))
