"""Between training and checkpoint folders: weights in, and weights with their tokenizer out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fourbee.foundation.errors import TrainingError
from fourbee.training.network import TrainableQwen3

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def initial_weights(model: TrainableQwen3, folder: Path) -> None:
    """Copies the checkpoint of `folder` into the model's parameters."""
    loaded: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded |= load_file(file)
    tensors = model.named_tensors()
    if loaded.keys() != tensors.keys():
        raise TrainingError(f"init_from {folder}: its tensors are not those of its config.json")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(loaded[name])


def export_checkpoint(folder: Path, model: TrainableQwen3, tokenizer: Path) -> None:
    """Writes a checkpoint folder that `fourbee serve` and transformers load."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_tensors().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(model.config.to_json(), indent=2)
    (folder / "config.json").write_text(config + "\n")
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
