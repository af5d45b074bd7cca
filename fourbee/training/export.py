"""Between training and checkpoint folders: weights in, and weights with their tokenizer out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import COMPANIONS, load_weights, save_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import named_tensors, weights_tree
from fourbee.training.lora import save_adapter
from fourbee.training.network import TrainableQwen3
from fourbee.training.recipe import Positions

ADAPTER = "adapter"  # beside an exported model whose adapter is also kept on its own


def initial_weights(model: TrainableQwen3, folder: Path) -> None:
    """Copies the checkpoint of `folder` into the model's parameters. ModelFileError as loading."""
    loaded = named_tensors(load_weights(folder, TorchOperations()))
    with torch.no_grad():
        for name, tensor in model.named_tensors().items():
            tensor.copy_(loaded[name])


def with_positions(config: Qwen3Config, positions: Positions) -> Qwen3Config:
    """The configuration with the positions that a recipe gives it, and dense float32 weights."""
    changes = {name: value for name, value in vars(positions).items() if value is not None}
    return replace(config, quantization=None, torch_dtype="float32", **changes)


def export_model(
    folder: Path, model: TrainableQwen3, tokenizer: Path, base: Path | None = None
) -> None:
    """Writes a float32 checkpoint folder that `fourbee serve` and transformers load.

    Of a model with an adapter the merged weights, and beside them, in `adapter`, the adapter alone
    in PEFT's format; `base` is what it adapts.
    """
    tree = weights_tree(model.config, model.merged_tensors())
    save_weights(folder, tree, TorchOperations())
    copy_tokenizer(tokenizer, folder)
    if model.lora is not None:
        save_adapter(folder / ADAPTER, model.adapter_tensors(), model.lora, base)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The files beside the weights: tokenizer, chat template, generation settings."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
