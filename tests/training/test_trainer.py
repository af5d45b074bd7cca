"""The trainer: exact resume, exact accumulation, and a loss that falls."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.model.config import Qwen3Config
from fourbee.training.pretrain import pretrain
from fourbee.training.recipe import Guard, Validation
from fourbee.training.sft import sft
from fourbee.training.spike_guard import SpikeGuard
from fourbee.training.text import TextStage
from fourbee.training.trainer import Trainer

from .conftest import SilentReporter
from .stages import Killed, digests


@pytest.mark.parametrize("killed_after", [1, 7, 10])
@pytest.mark.parametrize("train", [pretrain, sft])
def test_a_killed_run_resumes_to_the_same_bits(recipe, tmp_path, train, killed_after):
    whole = replace(recipe, output=tmp_path / "whole")
    train(whole, SilentReporter())

    def kill(done: int) -> None:
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, SilentReporter(kill))
    train(recipe, SilentReporter())
    assert digests(recipe.output) == digests(whole.output)


def test_ctrl_c_saves_and_a_second_start_goes_on(recipe, tmp_path):
    def interrupt(done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sft(recipe, SilentReporter(interrupt))
    assert (recipe.output / "update-0000003").is_dir()
    rest = SilentReporter()
    sft(recipe, rest)
    assert rest.records[0]["update"] == 4


def test_a_run_whose_folder_is_deleted_ends_at_its_next_checkpoint(recipe):
    def delete(done: int) -> None:
        if done == 6:
            shutil.rmtree(recipe.output)

    reporter = SilentReporter(delete)
    with pytest.raises(TrainingError) as error:
        sft(recipe, reporter)
    assert str(error.value) == (
        f"output = {recipe.output}: deleted, or its recipe.json, while the run goes on; it ends "
        "here, as what it would save could not be resumed"
    )
    assert reporter.records[-1]["update"] == 10
    assert not recipe.output.exists()


def test_a_run_whose_folder_is_deleted_exports_no_model_there(recipe, monkeypatch):
    reporter = SilentReporter()
    recipe = replace(recipe, epochs=1)

    def delete(message: str) -> None:
        if message == f"writing {recipe.output / 'model'}":
            shutil.rmtree(recipe.output)

    monkeypatch.setattr(reporter, "preparing", delete)
    with pytest.raises(TrainingError, match=r"deleted, or its recipe\.json"):
        sft(recipe, reporter)
    assert not recipe.output.exists()


def test_a_half_written_checkpoint_is_not_taken(recipe):
    def kill(done: int) -> None:
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        pretrain(recipe, SilentReporter(kill))
    (recipe.output / "update-0000006.partial").mkdir()
    rest = SilentReporter()
    pretrain(recipe, rest)
    assert rest.records[0]["update"] == 6


def test_accumulating_packs_gives_the_gradient_of_one_pack(recipe, tmp_path):
    losses = []
    for name, tokens_per_pack in (("one", 1000), ("many", 60)):
        reporter = SilentReporter()
        changed = replace(recipe, output=tmp_path / name, tokens_per_pack=tokens_per_pack, epochs=1)
        sft(changed, reporter)
        losses.append([(r["loss"], r["gradient_norm"]) for r in reporter.records])
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5
    )


def test_training_lowers_the_loss_and_validation_counts_exact_samples(recipe, data_file):
    reporter = SilentReporter()
    check = Validation(data_file, samples=4)
    sft(replace(recipe, epochs=12, validation=check), reporter)
    assert reporter.records[-1]["loss"] < 0.5 * reporter.records[0]["loss"]
    assert reporter.validations[-1]["echo"]["exact"] >= 0.5
    log = [json.loads(line) for line in (recipe.output / "log.jsonl").read_text().splitlines()]
    assert log[-2]["update"] == len(reporter.records)


def test_the_export_loads_as_a_checkpoint(recipe):
    exported = pretrain(recipe, SilentReporter())
    config = Qwen3Config.load(exported)
    assert config.hidden_size == 64
    assert config.vocab_size % 128 == 0
    assert (exported / "tokenizer.json").is_file()


def test_bfloat16_products_train_too(recipe):
    reporter = SilentReporter()
    pretrain(replace(recipe, precision="bfloat16", epochs=6), reporter)
    assert reporter.records[-1]["loss"] < 0.7 * reporter.records[0]["loss"]


def test_updates_without_a_finite_gradient_are_left_out_and_end_the_run(recipe):
    def break_it(learner, reporter):
        with torch.no_grad():
            learner.model.named_tensors()["model.norm.weight"].fill_(float("nan"))
        return TextStage(recipe, "all", learner, reporter)

    reporter = SilentReporter()
    with pytest.raises(TrainingError, match=r"update 4: gradient norm nan.*5 updates in a row"):
        Trainer("sft", recipe, break_it, reporter).train()
    assert [record["left_out"] for record in reporter.records] == [1, 2, 3, 4]


def test_a_run_that_diverges_at_its_end_is_neither_saved_nor_exported(recipe):
    """Too late for the guard, which counts updates in a row."""

    def break_it(done: int) -> None:
        if done == trainer.total:
            with torch.no_grad():
                trainer.parameters["model.norm.weight"].fill_(float("inf"))

    recipe = replace(recipe, epochs=1, checkpoint_every=1000)
    trainer = Trainer(
        "sft",
        recipe,
        lambda learner, told: TextStage(recipe, "all", learner, told),
        SilentReporter(break_it),
    )
    with pytest.raises(TrainingError, match=r"model\.norm\.weight holds NaN or infinity"):
        trainer.train()
    assert not list(recipe.output.glob("update-*"))
    assert not (recipe.output / "model").exists()


def test_one_spike_is_left_out_and_the_run_goes_on(recipe):
    """An update of the usual size in a run of small ones is what a spike looks like."""
    guard = SpikeGuard(Guard(spike=10.0, patience=2))
    assert not any(guard.refuses(1.0 + 0.1 * (n % 3), n, 0.0) for n in range(20))
    restored = SpikeGuard(guard.settings)
    restored.restore(json.loads(json.dumps(guard.state())))
    for one in (guard, restored):
        assert one.refuses(12.0, 20, 0.0)
        assert not one.refuses(1.0, 21, 0.0)
        assert one.left_out == 1
        # The second in a row is no accident.
        assert [one.refuses(norm, 22, 0.0) for norm in (12.0, 13.0, 12.5)] == [True, True, False]
        assert one.refuses(float("inf"), 22, 0.0)
        with pytest.raises(TrainingError, match="2 updates in a row"):
            one.refuses(float("nan"), 23, 0.0)


def test_updates_with_nothing_to_learn_say_nothing_of_what_is_usual():
    guard = SpikeGuard(Guard(spike=10.0, patience=2))
    assert not any(guard.refuses(0.7 if n % 3 == 0 else 0.0, n, 0.0) for n in range(200))


def test_spikes_are_no_numbers_that_are_not_finite():
    guard = SpikeGuard(Guard(spike=10.0, patience=3))
    assert not any(guard.refuses(1.0, n, 0.0) for n in range(20))
    assert all(guard.refuses(norm, 20, 0.0) for norm in (11.0, 12.0, float("nan")))
    assert guard.refuses(float("nan"), 23, 0.0)
    with pytest.raises(TrainingError, match=r"3 updates in a row.* in another output"):
        guard.refuses(float("nan"), 24, 0.0)


def test_a_run_that_knew_enough_goes_on_where_more_is_asked_for(recipe, data_file):
    def run(enough: float) -> int:
        reporter = SilentReporter()
        held_out = Validation(data_file, samples=2, enough=enough)
        sft(replace(recipe, epochs=20, validate_every=5, validation=held_out), reporter)
        return len(reporter.records)

    first = run(0.2)
    assert first
    assert run(0.2) == 0
    assert run(1.0) > 0


def test_a_damaged_checkpoint_is_one_line(recipe):
    recipe = replace(recipe, epochs=1)
    pretrain(recipe, SilentReporter())
    last = max(recipe.output.glob("update-*"))
    (last / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(TrainingError, match="cannot be resumed") as caught:
        pretrain(recipe, SilentReporter())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["epochs", "validate_every", "checkpoint_every"])
def test_settings_out_of_range_are_refused(recipe, name):
    with pytest.raises(UsageError, match=f"{name} = 0: expected at least 1"):
        replace(recipe, **{name: 0})
