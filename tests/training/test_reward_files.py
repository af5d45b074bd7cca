"""Reward models on the disk: transformers' own model of one label, which nobody serves as text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fourbee.engine.llm import LLM
from fourbee.foundation.errors import ModelFileError, TrainingError
from fourbee.model import checkpoint_files
from fourbee.model.config import Qwen3Config
from fourbee.training.export import export_model
from fourbee.training.learner import Learner
from fourbee.training.lora import LoraSettings
from fourbee.training.network import TrainableQwen3
from fourbee.training.operations import TrainingOperations
from fourbee.training.packing import pack_documents
from fourbee.training.recipe import TrainRecipe
from fourbee.training.reward_files import export_reward_model, load_reward_model
from fourbee.training.reward_model import Scorer, rewards_of

from .test_losses import CONFIG

OPS = TrainingOperations("cpu", torch.float32)
TEXTS = [
    np.random.default_rng(length).integers(0, CONFIG.vocab_size - 1, length).tolist()
    for length in (9, 1, 5, 17)
]


def rewards(model: TrainableQwen3) -> torch.Tensor:
    """Of all texts, side by side."""
    documents = [(ids, [False] * len(ids)) for ids in TEXTS]
    (pack,) = pack_documents(documents, 64)
    with torch.no_grad():
        found = rewards_of(Learner(model, OPS, tokenizer=None), pack)
    return found[torch.tensor(pack.documents).argsort()]


def moved(config: Qwen3Config = CONFIG, lora: LoraSettings | None = None) -> TrainableQwen3:
    model = TrainableQwen3(config, 1, lora, scored=True)
    with torch.no_grad():
        for one in model.trained_tensors().values():
            one.add_(0.1 * torch.randn(one.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize(
    ("tied", "lora"), [(True, None), (False, None), (True, LoraSettings(2, 8.0))]
)
def test_transformers_and_we_load_it_with_the_same_rewards(tokenizer_folder, tmp_path, tied, lora):
    model = moved(replace(CONFIG, tie_word_embeddings=tied), lora)
    export_reward_model(tmp_path, model, tokenizer_folder)
    expected = rewards(model)
    theirs, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen3ForSequenceClassification"
    assert not any(told.values())  # nothing missing, nothing left over
    width, padding = max(map(len, TEXTS)), theirs.config.pad_token_id
    padded = torch.tensor([ids + [padding] * (width - len(ids)) for ids in TEXTS])
    with torch.no_grad():
        alone = [theirs.eval()(torch.tensor([ids])).logits[0, 0] for ids in TEXTS]
        together = theirs(padded, attention_mask=(padded != padding).long()).logits[:, 0]
    assert expected.std() > 0.1
    for found in (torch.stack(alone), together):
        assert (found - expected).abs().max() <= 1e-5
    own = load_reward_model(tmp_path)
    assert not own.trained_tensors()
    assert (rewards(own) - expected).abs().max() <= (1e-5 if lora else 0)
    scores = Scorer(Learner(own, OPS, tokenizer=None)).scores(TEXTS)
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-5)


def test_a_reward_vector_that_is_not_finite_is_not_exported(tokenizer_folder, tmp_path):
    model = moved()
    with torch.no_grad():
        model.all_tensors()["score.weight"][0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"float32: score\.weight holds NaN or infinity"):
        export_reward_model(tmp_path / "model", model, tokenizer_folder)
    assert not (tmp_path / "model").exists()


def test_a_reward_model_is_written_in_the_type_of_the_recipe(tokenizer_folder, tmp_path):
    model = moved()
    export_reward_model(tmp_path, model, tokenizer_folder, "bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    own, expected = load_reward_model(tmp_path), rewards(model)
    assert (rewards(own) - expected).abs().max() <= 0.05 * expected.abs().max()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == torch.bfloat16


def test_what_transformers_saves_is_read(tokenizer_folder, tmp_path):
    model = moved()
    export_reward_model(tmp_path / "ours", model, tokenizer_folder)
    theirs = transformers.Qwen3ForSequenceClassification.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert torch.equal(rewards(load_reward_model(tmp_path / "theirs")), rewards(model))


def test_a_reward_model_is_not_served(tokenizer_folder, tmp_path):
    export_reward_model(tmp_path, moved(), tokenizer_folder)
    with pytest.raises(ModelFileError) as error:
        LLM.load(tmp_path, device="cpu")
    assert str(error.value) == (
        f"{tmp_path / 'config.json'}: architectures = 'Qwen3ForSequenceClassification': a reward "
        "model, which scores texts and writes none; expected 'Qwen3ForCausalLM'"
    )


def test_a_write_that_fails_is_one_line_and_leaves_the_old_reward_model(
    tokenizer_folder, tmp_path, monkeypatch
):
    model = moved()
    export_reward_model(tmp_path, model, tokenizer_folder)
    names = {file.name for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write_tensors", full)
    with pytest.raises(ModelFileError) as error:
        export_reward_model(tmp_path, TrainableQwen3(CONFIG, scored=True), tokenizer_folder)
    assert str(error.value) == f"{tmp_path}: cannot be written: No space left on device"
    assert {file.name for file in tmp_path.iterdir()} == names
    assert torch.equal(rewards(load_reward_model(tmp_path)), rewards(model))


# ---- what is no reward model


def refused(folder: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        load_reward_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_hold_none_are_one_line(tokenizer_folder, tmp_path):
    assert refused(tmp_path) == f"{tmp_path}: no config.json; expected a reward model"
    recipe = TrainRecipe(output=tmp_path, tokenizer=tokenizer_folder)
    export_model(tmp_path / "text", TrainableQwen3(CONFIG), recipe)
    assert refused(tmp_path / "text").endswith(
        "architectures = ['Qwen3ForCausalLM']: expected a reward model, "
        "['Qwen3ForSequenceClassification'] with one label"
    )


def test_damaged_weights_are_one_line(tokenizer_folder, tmp_path):
    export_reward_model(tmp_path, moved(), tokenizer_folder)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    two = torch.zeros(2, CONFIG.hidden_size)
    broken = {
        "tensors 1 missing: score.weight": {k: v for k, v in tensors.items() if "score" not in k},
        "score.weight is [2, 32], expected [1, 32]": tensors | {"score.weight": two},
        "model.norm.weight holds NaN or infinity": tensors
        | {"model.norm.weight": torch.full((CONFIG.hidden_size,), float("nan"))},
    }
    for message, content in broken.items():
        save_file(content, weights)
        assert message in refused(tmp_path)
    weights.write_bytes(b"short")
    assert "model.safetensors" in refused(tmp_path)


def test_a_model_of_several_labels_is_refused(tokenizer_folder, tmp_path):
    export_reward_model(tmp_path, moved(), tokenizer_folder)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_labels": 3}))
    assert refused(tmp_path).endswith("with one label")
