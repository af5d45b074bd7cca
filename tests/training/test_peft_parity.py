"""Adapters in PEFT's own hands: what we write it loads, what it writes we load, the same logits.

PEFT is no dependency: this runs where it is installed (with transformers), else it is skipped.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fourbee.foundation.errors import ModelFileError
from fourbee.training.export import export_model, initial_adapter
from fourbee.training.lora import LoraSettings, load_adapter, save_adapter
from fourbee.training.network import TrainableQwen3
from fourbee.training.recipe import TrainRecipe

from .test_lora import CONFIG, IDS, adapted, logits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PLAIN = LoraSettings(3, 6.0)


@pytest.fixture
def base(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """What `adapted` adapts, as a folder."""
    recipe = TrainRecipe(output=tmp_path, tokenizer=tokenizer_folder)
    export_model(tmp_path / "base", TrainableQwen3(CONFIG, seed=1), recipe)
    return tmp_path / "base"


def their_base(folder: Path):
    return transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS[None]).logits[0]


@pytest.mark.parametrize(
    "settings",
    [PLAIN, replace(PLAIN, rank_stabilised=True), replace(PLAIN, targets=("v_proj", "up_proj"))],
)
def test_peft_loads_our_adapter(base, tmp_path, settings):
    model = adapted(settings)
    save_adapter(tmp_path / "ours", model.adapter_tensors(), settings, base)
    theirs = peft.PeftModel.from_pretrained(their_base(base), tmp_path / "ours")
    difference = (their_logits(theirs) - logits(model)).abs().max().item()
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-5
    assert (their_logits(their_base(base)) - logits(model)).abs().max() > 1e-3


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_we_load_an_adapter_of_peft(base, tmp_path, rank_stabilised):
    theirs = peft.get_peft_model(
        their_base(base),
        peft.LoraConfig(
            r=3, lora_alpha=6, use_rslora=rank_stabilised, init_lora_weights=False,
            target_modules=r".*\.(q_proj|down_proj)", task_type="CAUSAL_LM",
        ),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    _, settings = load_adapter(tmp_path / "theirs")
    assert settings == LoraSettings(3, 6.0, ("q_proj", "down_proj"), rank_stabilised)
    model = TrainableQwen3(CONFIG, 1, settings)
    initial_adapter(model, tmp_path / "theirs")
    difference = (their_logits(theirs) - logits(model)).abs().max().item()
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_of_a_changed_base_are_refused(base, tmp_path, start):
    settings = peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=start)
    peft.get_peft_model(their_base(base), settings).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelFileError, match=f"init_lora_weights = '{start}'"):
        load_adapter(tmp_path / "theirs")
