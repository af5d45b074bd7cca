"""Adapters: what they add, what of them is trained, their files, and runs that train them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.settings import build
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training.export import export_model, initial_adapter
from fourbee.training.learner import Learner
from fourbee.training.lora import CONFIG as ADAPTER_CONFIG
from fourbee.training.lora import WEIGHTS, LoraSettings, load_adapter, save_adapter
from fourbee.training.losses import next_token_loss
from fourbee.training.network import TrainableQwen3
from fourbee.training.operations import TrainingOperations
from fourbee.training.packing import pack_documents
from fourbee.training.recipe import ModelShape, TrainRecipe
from fourbee.training.sft import sft
from fourbee.training.text import TextRecipe

from .conftest import SilentReporter
from .test_losses import CONFIG

OPS = TrainingOperations("cpu", torch.float32)
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
SETTINGS = LoraSettings(rank=3, alpha=6.0)


def adapted(settings: LoraSettings = SETTINGS, seed: int = 1, moved: bool = True) -> TrainableQwen3:
    """A network with an adapter; `moved`: as if it had been trained."""
    model = TrainableQwen3(CONFIG, seed, settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, one in model.adapter_tensors().items():
            if moved and name.endswith("lora_B"):
                one.normal_(0, 0.2, generator=generator)
    return model


def dense(tensors: dict[str, torch.Tensor]) -> TrainableQwen3:
    """A network without adapters of these tensors."""
    model = TrainableQwen3(CONFIG, seed=99)
    with torch.no_grad():
        for name, one in model.named_tensors().items():
            one.copy_(tensors[name])
    return model


def logits(model: TrainableQwen3, ops: TorchOperations = OPS) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(IDS, torch.arange(len(IDS)), DocumentAttention([len(IDS)]), ops)
        return ops.linear(hidden, model.head())


# ---- settings


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rank": 0}, "lora.rank = 0: expected at least 1"),
        ({"alpha": 0}, "lora.alpha = 0.0: expected more than 0"),
        ({"targets": []}, "lora.targets = []: expected some of q_proj, "),
        ({"targets": ["q_pro"]}, "lora.targets: unknown 'q_pro' (did you mean 'q_proj'?); known: "),
    ],
)
def test_settings_out_of_range_are_one_line(table, message):
    with pytest.raises(UsageError) as error:
        build(LoraSettings, table, "lora")
    assert str(error.value).startswith(message)


def test_the_scale_is_alpha_over_the_rank_or_over_its_root():
    assert LoraSettings(16, 8.0).scale == 0.5
    assert LoraSettings(16, 8.0, rank_stabilised=True).scale == 2.0


# ---- what it computes


def test_before_its_first_update_an_adapter_changes_no_bit():
    model = adapted(moved=False)
    assert torch.equal(logits(model), logits(dense(model.named_tensors())))


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), SETTINGS.targets])
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_merged_weights_give_the_adapted_logits(targets, rank_stabilised):
    settings = LoraSettings(3, 6.0, targets, rank_stabilised)
    model = adapted(settings)
    found = logits(model)
    assert (logits(dense(model.merged_tensors())) - found).abs().max() <= 1e-5
    assert (logits(dense(model.named_tensors())) - found).abs().max() > 1e-2
    assert len(model.adapter_tensors()) == 2 * CONFIG.num_hidden_layers * len(targets)


def test_only_adapters_are_trained_with_the_gradient_of_the_product():
    """dL/dA = scale B^T dL/dW and dL/dB = scale dL/dW A^T, of the merged network's dL/dW."""
    model = adapted()
    whole = dense(model.merged_tensors())
    pack = pack_documents([(IDS.tolist(), [False] + [True] * 7)], 64)[0]
    for one in (model, whole):
        positions = torch.from_numpy(pack.positions)
        hidden = one(torch.from_numpy(pack.ids), positions, DocumentAttention(pack.lengths), OPS)
        next_token_loss(hidden, one.head(), pack, OPS).loss.backward()
    assert set(model.trained_tensors()) == set(model.adapter_tensors())
    assert all(one.grad is None for one in model.named_tensors().values())
    adapter, expected = model.adapter_tensors(), whole.named_tensors()
    for stem in {name.rpartition(".")[0] for name in adapter}:
        down, up = adapter[f"{stem}.lora_A"], adapter[f"{stem}.lora_B"]
        gradient = expected[f"{stem}.weight"].grad
        for found, product in ((down, up.T @ gradient), (up, gradient @ down.T)):
            torch.testing.assert_close(found.grad, 2.0 * product, rtol=1e-3, atol=1e-5)


def test_frozen_matrices_keep_their_type_and_merge_in_float32():
    model = TrainableQwen3(CONFIG, 1, SETTINGS, frozen=torch.bfloat16)
    types = {name: one.dtype for name, one in model.named_tensors().items()}
    assert types["model.layers.0.self_attn.q_proj.weight"] == torch.bfloat16
    assert types["model.embed_tokens.weight"] == torch.float32
    assert types["model.norm.weight"] == torch.float32
    assert {one.dtype for one in model.trained_tensors().values()} == {torch.float32}
    exact = TrainableQwen3(CONFIG, 1, SETTINGS)
    with torch.no_grad():
        for name, one in exact.all_tensors().items():
            one.copy_(model.all_tensors()[name])
    assert torch.equal(logits(model), logits(exact))
    bf16 = TrainingOperations("cpu", torch.bfloat16)
    assert torch.equal(logits(model, bf16), logits(exact, bf16))
    for name, merged in model.merged_tensors().items():
        assert torch.equal(merged.float(), exact.merged_tensors()[name]), name


def test_a_reference_keeps_the_adapter_that_the_run_began_with():
    model = adapted()
    learner = Learner(model, OPS, tokenizer=None)
    pack = pack_documents([(IDS.tolist(), [False] + [True] * 7)], 64)[0]
    reference, before = learner.frozen(), learner.logps(pack).detach()
    with torch.no_grad():
        for one in model.trained_tensors().values():
            one.add_(0.1)
    assert torch.equal(reference.logps(pack), before)
    assert (learner.logps(pack) - before).abs().max() > 1e-2


# ---- files


def test_a_saved_adapter_comes_back(tmp_path):
    model = adapted()
    save_adapter(tmp_path, model.adapter_tensors(), SETTINGS, tmp_path / "base")
    tensors, settings = load_adapter(tmp_path)
    assert settings == SETTINGS
    stored = load_file(tmp_path / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert stored[name].shape == (3, CONFIG.hidden_size)
    assert len(stored) == len(tensors) == 2 * 2 * 7
    other = TrainableQwen3(CONFIG, 1, SETTINGS)
    initial_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, rank=4), "lora.rank = 4: the adapter of {} has 3; expected the same"),
        (replace(SETTINGS, alpha=8.0), "lora.alpha = 8.0: the adapter of {} has 6.0; "),
        (replace(SETTINGS, targets=("v_proj", "q_proj")), "lora.targets = q_proj, v_proj: the "),
        (replace(SETTINGS, rank_stabilised=True), "lora.rank_stabilised = True: the adapter of "),
    ],
)
def test_an_adapter_of_other_settings_is_one_line(tmp_path, settings, message):
    save_adapter(tmp_path, adapted().adapter_tensors(), SETTINGS, None)
    with pytest.raises(UsageError) as error:
        initial_adapter(TrainableQwen3(CONFIG, 1, settings), tmp_path)
    assert str(error.value).startswith(message.format(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 64}, "layers.0.mlp.down_proj.lora_A is [3, 48], expected [3, 64]"),
        ({"num_hidden_layers": 3}, "tensors 14 missing: model.layers.2.mlp.down_proj.lora_A, "),
        ({"num_hidden_layers": 1}, "tensors 14 not expected: "),
    ],
)
def test_an_adapter_of_another_network_is_one_line(tmp_path, change, message):
    save_adapter(tmp_path, adapted().adapter_tensors(), SETTINGS, None)
    with pytest.raises(ModelFileError) as error:
        initial_adapter(TrainableQwen3(replace(CONFIG, **change), 1, SETTINGS), tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA': expected 'LORA'"),
        ({"use_dora": True}, "use_dora = True: expected none"),
        ({"bias": "all"}, "bias = 'all': expected none"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern = {'q_proj': 3}: expected none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa': such an adapter belongs"),
        ({"r": None}, "not a LoRA adapter"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, change, message):
    save_adapter(tmp_path, adapted().adapter_tensors(), SETTINGS, None)
    path = tmp_path / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError) as error:
        load_adapter(tmp_path)
    assert message in str(error.value)


def test_a_folder_without_an_adapter_or_with_nan_is_one_line(tmp_path):
    with pytest.raises(ModelFileError, match=r"no adapter_config.json; expected a LoRA adapter"):
        load_adapter(tmp_path)
    model = adapted()
    save_adapter(tmp_path, model.adapter_tensors(), SETTINGS, None)
    (tmp_path / WEIGHTS).write_bytes(b"short")
    with pytest.raises(ModelFileError, match="not a LoRA adapter"):
        load_adapter(tmp_path)
    with torch.no_grad():
        model.adapter_tensors()["model.layers.1.mlp.up_proj.lora_B"][0, 0] = float("nan")
    save_adapter(tmp_path, model.adapter_tensors(), SETTINGS, None)
    with pytest.raises(ModelFileError, match=r"layers.1.mlp.up_proj.lora_B holds NaN or infinity"):
        initial_adapter(TrainableQwen3(CONFIG, 1, SETTINGS), tmp_path)


# ---- runs


@pytest.fixture
def over_a_base(recipe: TextRecipe, tmp_path: Path) -> TextRecipe:
    """A run that adapts a model of the tiny tokenizer."""
    base = TrainableQwen3(replace(CONFIG, vocab_size=384, max_position_embeddings=256), 5)
    export_model(tmp_path / "base", base, recipe)
    return replace(recipe, init_from=tmp_path / "base", model=ModelShape(), tokenizer=None,
                   lora=SETTINGS, updates=8, epochs=None,
                   optimizer=replace(recipe.optimizer, matrices="adamw"))  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_saves_adapters_alone_and_resumes_to_the_same_bits(over_a_base, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done: int) -> None:
        if done == 7:
            raise Killed

    sft(replace(over_a_base, output=tmp_path / "whole"), SilentReporter())
    with pytest.raises(Killed):
        sft(over_a_base, SilentReporter(kill))
    saved = load_file(over_a_base.output / "update-0000005/model.safetensors")
    assert len(saved) == 28
    assert all(".lora_" in name for name in saved)
    sft(over_a_base, SilentReporter())
    for name in ("update-0000008/model.safetensors", "update-0000008/optimizer.safetensors",
                 "model/model.safetensors", "model/adapter/adapter_model.safetensors"):  # fmt: skip
        assert digest(over_a_base.output / name) == digest(tmp_path / "whole" / name)


def test_a_run_goes_on_with_an_adapter(over_a_base, tmp_path):
    first = sft(over_a_base, SilentReporter()) / "adapter"
    assert json.loads((first / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    second = replace(over_a_base, output=tmp_path / "second", init_adapter_from=first)
    begun, fresh = Learner.from_recipe(second).model, Learner.from_recipe(over_a_base).model
    tensors, _ = load_adapter(first)
    for name, one in begun.adapter_tensors().items():
        assert torch.equal(one, tensors[name])
        assert not torch.equal(one, fresh.adapter_tensors()[name])


def test_a_bfloat16_base_stays_bfloat16_where_products_are(over_a_base, recipe, tmp_path):
    base = TrainableQwen3(replace(CONFIG, vocab_size=384), 5)
    export_model(tmp_path / "narrow", base, replace(recipe, export_type="bfloat16"))
    name = "model.layers.0.mlp.up_proj.weight"
    for precision in ("float32", "bfloat16"):
        begun = replace(over_a_base, init_from=tmp_path / "narrow", precision=precision)
        kept = Learner.from_recipe(begun).model.named_tensors()[name]
        assert kept.dtype == getattr(torch, precision)
        assert torch.equal(kept.float(), base.named_tensors()[name].bfloat16().float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": LoraSettings()}, "lora without init_from"),
        ({"init_adapter_from": Path("a")}, "init_adapter_from without lora"),
    ],
)
def test_what_an_adapter_needs_is_asked_for(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        TrainRecipe(output=tmp_path, tokenizer=tmp_path, **change)


def test_weights_that_are_not_finite_are_refused(over_a_base):
    path = over_a_base.init_from / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("inf")
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"base: model.norm.weight holds NaN or infinity"):
        Learner.from_recipe(over_a_base)
