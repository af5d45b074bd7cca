"""The trainer: exact resume, exact accumulation, and a loss that falls."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.model.config import Qwen3Config
from fourbee.training.trainer import Trainer, Validation

from .conftest import SilentReporter


def digests(run: Path) -> dict[str, str]:
    """sha256 of the last checkpoint's weights and optimizer, and of the exported model."""
    last = max(path for path in run.glob("update-*") if path.is_dir())
    names = ("model.safetensors", "optimizer.safetensors")
    return {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in names} | {
        "exported": hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()
    }


class Killed(BaseException):
    """Stands for the end of the process in the middle of a run."""


@pytest.mark.parametrize("killed_after", [1, 7, 10])
@pytest.mark.parametrize("loss", ["all", "assistant"])
def test_a_killed_run_resumes_to_the_same_bits(recipe, tmp_path, loss, killed_after):
    whole = replace(recipe, output=tmp_path / "whole")
    Trainer(whole, loss, SilentReporter()).train()

    def kill(done: int) -> None:
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        Trainer(recipe, loss, SilentReporter(kill)).train()
    Trainer(recipe, loss, SilentReporter()).train()
    assert digests(recipe.output) == digests(whole.output)


def test_ctrl_c_saves_and_a_second_start_goes_on(recipe, tmp_path):
    def interrupt(done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe, "assistant", SilentReporter(interrupt)).train()
    assert (recipe.output / "update-0000003").is_dir()
    rest = SilentReporter()
    Trainer(recipe, "assistant", rest).train()
    assert rest.records[0]["update"] == 4


def test_a_half_written_checkpoint_is_not_taken(recipe):
    def kill(done: int) -> None:
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        Trainer(recipe, "all", SilentReporter(kill)).train()
    (recipe.output / "update-0000006.partial").mkdir()
    rest = SilentReporter()
    Trainer(recipe, "all", rest).train()
    assert rest.records[0]["update"] == 6


def test_accumulating_packs_gives_the_gradient_of_one_pack(recipe, tmp_path):
    # Muon rounds its steps to bfloat16, so that gradients alike in float32 part ways.
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, matrices="adamw"))
    losses = []
    for name, tokens_per_pack in (("one", 1000), ("many", 40)):
        reporter = SilentReporter()
        changed = replace(recipe, output=tmp_path / name, tokens_per_pack=tokens_per_pack, epochs=1)
        Trainer(changed, "assistant", reporter).train()
        losses.append([(r["loss"], r["gradient_norm"]) for r in reporter.records])
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5
    )


def test_training_lowers_the_loss_and_validation_counts_exact_samples(recipe, data_file):
    reporter = SilentReporter()
    check = Validation(data_file, samples=4)
    Trainer(replace(recipe, epochs=12, validation=check), "assistant", reporter).train()
    assert reporter.records[-1]["loss"] < 0.5 * reporter.records[0]["loss"]
    assert reporter.validations[-1]["echo"]["exact"] >= 0.5
    log = [json.loads(line) for line in (recipe.output / "log.jsonl").read_text().splitlines()]
    assert log[-2]["update"] == len(reporter.records)


def test_the_export_loads_as_a_checkpoint(recipe):
    exported = Trainer(recipe, "all", SilentReporter()).train()
    config = Qwen3Config.load(exported)
    assert config.hidden_size == 64
    assert config.vocab_size % 128 == 0
    assert (exported / "tokenizer.json").is_file()


def test_bfloat16_products_train_too(recipe):
    reporter = SilentReporter()
    Trainer(replace(recipe, precision="bfloat16", epochs=6), "all", reporter).train()
    assert reporter.records[-1]["loss"] < 0.7 * reporter.records[0]["loss"]


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_weights(recipe):
    trainer = Trainer(recipe, "all", SilentReporter())
    with torch.no_grad():
        trainer.model.named_tensors()["model.norm.weight"].fill_(float("nan"))
    with pytest.raises(TrainingError, match="update 0: gradient norm nan"):
        trainer.train()


def test_a_damaged_checkpoint_is_one_line(recipe):
    Trainer(replace(recipe, epochs=1), "all", SilentReporter()).train()
    last = max(recipe.output.glob("update-*"))
    (last / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(TrainingError, match="cannot be resumed") as caught:
        Trainer(recipe, "all", SilentReporter()).train()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["epochs", "validate_every", "checkpoint_every"])
def test_settings_out_of_range_are_refused(recipe, name):
    with pytest.raises(UsageError, match=f"{name} = 0: expected at least 1"):
        replace(recipe, **{name: 0})


def test_kill_minus_nine_leaves_a_run_that_resumes_to_the_same_bits(recipe, tmp_path):
    """The real thing: another process, killed by the system at an arbitrary moment."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            from fourbee.foundation.settings import build
            from fourbee.training.trainer import Trainer, TrainRecipe

            class Reporter:
                def preparing(self, message): pass
                def validation(self, record): pass
                def update(self, done, total, record): print(done, flush=True)

            table = dict(
                output=sys.argv[1], data=[{str(recipe.data[0].path)!r}],
                tokenizer={str(recipe.tokenizer)!r}, tokens_per_update=200, epochs=2,
                checkpoint_every=2, threads=1, precision="float32",
                model=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                           max_position_embeddings=256),
            )
            Trainer(build(TrainRecipe, table), "all", Reporter()).train()
            """
        )
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, whole], check=True, capture_output=True)
    with subprocess.Popen([sys.executable, script, killed], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 7:
                process.kill()
                break
    subprocess.run([sys.executable, script, killed], check=True, capture_output=True)
    assert digests(killed) == digests(whole)
