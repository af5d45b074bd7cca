"""The trainable network, its exported folder, and its checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from fourbee.engine.llm import LLM
from fourbee.foundation.errors import TrainingError
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.qwen3 import forward
from fourbee.model.weights import tensor_shapes
from fourbee.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fourbee.training.export import export_checkpoint, initial_weights
from fourbee.training.network import TrainableQwen3
from fourbee.training.optimizers import OptimizerSettings, build_optimizers

from .test_losses import CONFIG


@pytest.fixture
def model() -> TrainableQwen3:
    return TrainableQwen3(CONFIG, seed=1)


def equal(one: TrainableQwen3, other: TrainableQwen3) -> bool:
    pairs = zip(one.named_tensors().items(), other.named_tensors().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# ---- parameters


def test_parameters_have_the_checkpoints_names_and_shapes(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_tensors().items()}
    assert shapes == tensor_shapes(CONFIG)
    assert {tensor.dtype for tensor in model.named_tensors().values()} == {torch.float32}
    assert len(list(model.parameters())) == len(shapes)


def test_matrices_start_random_by_seed_and_norms_at_one(model):
    assert equal(model, TrainableQwen3(CONFIG, seed=1))
    assert not equal(model, TrainableQwen3(CONFIG, seed=2))
    for name, tensor in model.named_tensors().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            assert tensor.std().item() == pytest.approx(CONFIG.initializer_range, rel=0.2)


def test_its_forward_is_the_one_that_serves(model):
    ops = TorchOperations("cpu", torch.float32)
    ids, positions = torch.tensor([3, 1, 4, 1]), torch.arange(4)
    with torch.no_grad():
        found = model(ids, positions, DocumentAttention([4]), ops)
        served = forward(model.weights(), ids, positions, DocumentAttention([4]), ops).final
    assert torch.equal(found, served)


# ---- the exported folder


def test_an_export_loads_as_weights_and_as_a_start(model, tokenizer_folder, tmp_path):
    export_checkpoint(tmp_path / "model", model, tokenizer_folder)
    again = TrainableQwen3(CONFIG, seed=9)
    initial_weights(again, tmp_path / "model")
    assert equal(model, again)
    ops = TorchOperations("cpu", torch.float32)
    weights = load_weights(tmp_path / "model", ops)
    embedding = model.named_tensors()["model.embed_tokens.weight"].detach().numpy()
    assert np.array_equal(ops.to_numpy(weights.embedding), embedding)


def test_an_export_answers(tokenizer_folder, tmp_path):
    config = replace(CONFIG, vocab_size=320)
    export_checkpoint(tmp_path / "model", TrainableQwen3(config), tokenizer_folder)
    llm = LLM.load(tmp_path / "model", device="cpu")
    params = replace(llm.defaults.params, max_tokens=3)
    assert llm.generate(["red"], params)[0].usage.completion_tokens <= 3


def test_the_tokenizer_goes_with_an_export(model, tokenizer_folder, tmp_path):
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "own"))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    export_checkpoint(tmp_path / "model", model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes()
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["hidden_size"] == CONFIG.hidden_size


# ---- checkpoints


def stepped(
    model: TrainableQwen3, seed: int, matrices: Literal["adamw", "muon"] = "muon"
) -> list[torch.optim.Optimizer]:
    """Optimizers that have done one update."""
    optimizers = build_optimizers(model.named_tensors(), OptimizerSettings(matrices=matrices))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()
    return optimizers


def moments(optimizers: list[torch.optim.Optimizer]) -> dict[tuple[int, int, str], torch.Tensor]:
    return {
        (number, index, name): one
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, one in state.items()
    }


def test_a_checkpoint_brings_back_weights_optimizer_and_progress(model, tmp_path):
    optimizers = stepped(model, seed=0)
    progress = Progress(update=7, tokens=1234, seconds=5.5)
    save_checkpoint(tmp_path, model, optimizers, progress, keep=2)
    other = TrainableQwen3(CONFIG, seed=5)
    restored = stepped(other, seed=1)
    assert load_checkpoint(tmp_path, other, restored) == progress
    assert equal(model, other)
    saved, found = moments(optimizers), moments(restored)
    assert {number for number, _, _ in saved} == {0, 1}
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)


def test_the_newest_checkpoints_are_kept(model, tmp_path):
    optimizers = stepped(model, seed=0)
    for update in (5, 10, 100):
        save_checkpoint(tmp_path, model, optimizers, Progress(update), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-0000010", "update-0000100"]
    found = load_checkpoint(tmp_path, model, optimizers)
    assert found is not None
    assert found.update == 100


def test_saving_the_same_update_again_replaces_it(model, tmp_path):
    optimizers = stepped(model, seed=0)
    for tokens in (1, 2):
        save_checkpoint(tmp_path, model, optimizers, Progress(3, tokens), keep=1)
    assert load_checkpoint(tmp_path, model, optimizers) == Progress(3, 2)


def test_no_checkpoint_is_a_new_run(model, tmp_path):
    assert load_checkpoint(tmp_path, model, stepped(model, seed=0)) is None


def test_a_checkpoint_of_another_network_is_one_line(model, tmp_path):
    wider = TrainableQwen3(replace(CONFIG, intermediate_size=64))
    folder = save_checkpoint(tmp_path, wider, stepped(wider, seed=0), Progress(1), keep=1)
    with pytest.raises(TrainingError) as error:
        load_checkpoint(tmp_path, model, stepped(model, seed=0))
    text = str(error.value)
    assert text.startswith(f"checkpoint {folder}: cannot be resumed: ")
    assert "\n" not in text


@pytest.mark.parametrize(("saved", "found"), [("muon", "adamw"), ("adamw", "muon")])
def test_a_checkpoint_of_other_optimizers_is_one_line(model, tmp_path, saved, found):
    folder = save_checkpoint(tmp_path, model, stepped(model, 0, saved), Progress(1), keep=1)
    with pytest.raises(TrainingError) as error:
        load_checkpoint(tmp_path, model, stepped(model, 0, found))
    assert str(error.value) == (
        f"checkpoint {folder}: cannot be resumed: saved with other optimizers (optimizer.matrices)"
    )
