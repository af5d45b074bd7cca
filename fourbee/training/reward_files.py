"""Reward models on the disk, as transformers' `Qwen3ForSequenceClassification` of one label."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fourbee.foundation.errors import ModelFileError
from fourbee.foundation.json_files import read_json_object
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes
from fourbee.training.export import copy_tokenizer
from fourbee.training.network import SCORE, TrainableQwen3

ARCHITECTURE = "Qwen3ForSequenceClassification"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def export_reward_model(folder: Path, model: TrainableQwen3, tokenizer: Path) -> None:
    """Writes weights (with an adapter merged), reward vector, configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_json() | {
        "architectures": [ARCHITECTURE],
        "num_labels": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        # transformers takes the last token that is not this one for the end of a text.
        "pad_token_id": model.config.vocab_size - 1,
    }
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in (model.merged_tensors() | {SCORE: model.all_tensors()[SCORE]}).items()
    }
    partial = folder / f"{_WEIGHTS}.partial"
    try:
        (folder / _CONFIG).unlink(missing_ok=True)
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, folder / _WEIGHTS)
        copy_tokenizer(tokenizer, folder)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{folder}: cannot be written: {error}") from error


def load_reward_model(folder: Path) -> TrainableQwen3:
    """The frozen reward model of a folder. ModelFileError for one that is damaged or is none."""
    path = folder / _CONFIG
    values = read_json_object(path)
    if values.get("architectures") != [ARCHITECTURE] or values.get("num_labels", 1) != 1:
        raise ModelFileError(
            f"{path}: architectures = {values.get('architectures')!r}: expected a reward model, "
            f"[{ARCHITECTURE!r}] with one label"
        )
    plain = {key: value for key, value in values.items() if key != "architectures"}
    model = TrainableQwen3(Qwen3Config.from_json(plain, str(path)), scored=True)
    try:
        stored = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{folder / _WEIGHTS}: cannot be read: {error}") from error
    expected = tensor_shapes(model.config) | {SCORE: (1, model.config.hidden_size)}
    for name, shape in expected.items():
        if name not in stored or tuple(stored[name].shape) != shape:
            found = tuple(stored[name].shape) if name in stored else "nothing"
            raise ModelFileError(f"{folder / _WEIGHTS}: {name} is {found}: expected {shape}")
    with torch.no_grad():
        for name, tensor in model.all_tensors().items():
            tensor.copy_(stored[name])
    return model.requires_grad_(False)
