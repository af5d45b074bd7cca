"""A run's folder: one process at a time, one recipe for its whole life."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from fourbee.foundation.errors import TrainingError
from fourbee.training import run_folder
from fourbee.training.curriculum import CurriculumPoint
from fourbee.training.recipe import ModelShape
from fourbee.training.run_folder import keep_contents, own_run
from fourbee.training.sources import Source
from fourbee.training.text import TextRecipe
from fourbee.training.trainer import Trainer


def refusal(recipe: TextRecipe, stage: str = "sft") -> str:
    with pytest.raises(TrainingError) as error, own_run(stage, recipe):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def add_checkpoint(run: Path) -> None:
    (run / "update-0000005").mkdir()
    (run / "update-0000005" / "progress.json").touch()


@pytest.fixture
def begun(recipe: TextRecipe) -> TextRecipe:
    """A recipe whose run has a checkpoint."""
    with own_run("sft", recipe):
        keep_contents(recipe)
        add_checkpoint(recipe.output)
    return recipe


def test_a_second_process_is_refused_until_the_first_is_killed(recipe, tmp_path):
    script = tmp_path / "hold.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            from pathlib import Path
            from fourbee.training.recipe import TrainRecipe
            from fourbee.training.run_folder import own_run

            recipe = TrainRecipe(output=Path({str(recipe.output)!r}), tokenizer=Path("t"))
            with own_run("sft", recipe):
                print("held", flush=True)
                time.sleep(60)
            """
        )
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            expected = (
                f"output = {recipe.output}: another run (process {process.pid}) is writing there; "
                "expected a folder of its own, or that one to end first"
            )
            assert refusal(recipe) == expected
            # At once: before a model is made or data is read.
            with pytest.raises(TrainingError, match=f"process {process.pid}"):
                Trainer("sft", replace(recipe, tokenizer=Path("absent")), None, None)
        finally:
            process.kill()
    with own_run("sft", recipe):
        pass
    assert not (recipe.output / "owner.pid").exists()


def test_an_output_that_can_be_no_folder_is_one_line(recipe, data_file):
    assert refusal(replace(recipe, output=data_file)) == (
        f"output = {data_file}: File exists: expected a folder, or where one can be made"
    )


def test_the_same_recipe_goes_on(begun):
    with own_run("sft", begun):
        assert (begun.output / "recipe.json").is_file()


def test_another_recipe_is_refused_by_its_first_key_that_differs(begun):
    rate = replace(begun.optimizer, learning_rate=1e-5)
    assert refusal(replace(begun, optimizer=rate, seed=4)) == (
        f"optimizer.learning_rate = 1e-05: the run in {begun.output} was begun with 0.003; "
        "expected its own recipe, another output, or that folder deleted"
    )


def test_another_stage_is_refused_though_its_recipe_is_the_same(begun):
    assert refusal(begun, "pretrain") == (
        f"stage = pretrain: the run in {begun.output} was begun with sft; "
        "expected its own recipe, another output, or that folder deleted"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed = 4: the run in "),
        ({"data": (Source(Path("other.jsonl")),)}, "data[0].path = other.jsonl: the run in "),
        ({"epochs": None, "updates": 9}, "epochs = None: the run in "),
        ({"curriculum": (CurriculumPoint(at=0, length=32),)}, "curriculum[0].at = 0: the run in "),
        ({"precision": "bfloat16"}, "precision = bfloat16: the run in "),
    ],
)
def test_whatever_the_weights_depend_on_has_to_stay(begun, change, message):
    assert refusal(replace(begun, **change)).startswith(message)


def test_a_setting_that_is_gone_is_named(begun):
    longer = replace(begun, output=begun.output.parent / "longer", data=begun.data * 2)
    with own_run("sft", longer):
        add_checkpoint(longer.output)
    text = refusal(replace(begun, output=longer.output))
    assert text.startswith("data[1].path = nothing: the run in ")


def test_what_changes_no_weight_may_change(begun):
    changed = replace(begun, threads=2, workers=2, log_every=1, checkpoint_every=7,
                      keep_checkpoints=1, checkpointing=True, export_type="bfloat16")  # fmt: skip
    with own_run("sft", changed):
        pass
    moved = begun.output.rename(begun.output.with_name("moved"))
    with own_run("sft", replace(begun, output=moved)):
        pass
    assert refusal(replace(begun, output=moved, seed=9)).startswith("seed = 9: ")


def test_files_that_hold_something_else_are_refused(begun, data_file, tmp_path):
    """Data and weights that a run goes on with have to be those that it was begun with."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(bytes(1000))
    recipe = replace(begun, init_from=weights, model=ModelShape(), output=tmp_path / "other")
    recipe.output.mkdir()
    keep_contents(recipe)
    add_checkpoint(recipe.output)
    keep_contents(recipe)
    data_file.write_text(data_file.read_text().replace("a", "e"))
    with pytest.raises(TrainingError) as error:
        keep_contents(recipe)
    assert str(error.value) == (
        f"data[0].path = {data_file}: it holds something else than when the run in "
        f"{recipe.output} was begun; expected what it held, another output, or that folder deleted"
    )
    keep_contents(replace(recipe, data=(Source(tmp_path / "absent.jsonl"),)))  # said elsewhere
    (weights / "model.safetensors").write_bytes(b"1" * 1000)
    with pytest.raises(TrainingError, match=r"^init_from = .*weights: it holds something else"):
        keep_contents(replace(recipe, data=()))
    shutil.rmtree(recipe.output / "update-0000005")
    keep_contents(recipe)  # before its first checkpoint a run may begin anew
    keep_contents(recipe)


def test_of_large_files_blocks_tell(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_WHOLE", 0)
    monkeypatch.setattr(run_folder, "_BLOCK", 10)
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(bytes(5000))
    recipe = replace(recipe, init_from=weights, model=ModelShape())
    recipe.output.mkdir()
    keep_contents(recipe)
    add_checkpoint(recipe.output)
    keep_contents(recipe)
    weights.write_bytes(bytes(4999) + b"1")
    with pytest.raises(TrainingError, match="it holds something else"):
        keep_contents(recipe)


@pytest.mark.parametrize("name", ["recipe.json", "contents.json"])
def test_checkpoints_without_what_they_were_made_with_are_refused(begun, name):
    path = begun.output / name
    path.unlink()
    with pytest.raises(TrainingError) as error, own_run("sft", begun):
        keep_contents(begun)
    assert str(error.value) == (
        f"{path}: no such file beside the run's checkpoints, so they may be those of another "
        f"recipe; expected the {name} that the run wrote, another output, or that folder deleted"
    )
    assert not path.exists()


def test_before_its_first_checkpoint_a_run_may_begin_anew(recipe):
    for seed in (1, 2):
        with own_run("sft", replace(recipe, seed=seed)):
            pass
