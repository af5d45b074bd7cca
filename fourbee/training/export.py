"""Between training and checkpoint folders: weights in, and weights with their tokenizer out."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import COMPANIONS, load_weights, save_weights
from fourbee.model.weights import named_tensors
from fourbee.training.network import TrainableQwen3


def initial_weights(model: TrainableQwen3, folder: Path) -> None:
    """Copies the checkpoint of `folder` into the model's parameters. ModelFileError as loading."""
    loaded = named_tensors(load_weights(folder, TorchOperations()))
    with torch.no_grad():
        for name, tensor in model.named_tensors().items():
            tensor.copy_(loaded[name])


def export_checkpoint(folder: Path, model: TrainableQwen3, tokenizer: Path) -> None:
    """Writes a float32 checkpoint folder that `fourbee serve` and transformers load."""
    save_weights(folder, model.weights(), TorchOperations())
    for name in COMPANIONS:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
