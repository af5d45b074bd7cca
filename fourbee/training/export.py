"""Between training and checkpoint folders: weights in, and weights with their tokenizer out."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from fourbee.foundation.errors import ModelFileError, TrainingError, UsageError
from fourbee.kernels.torch_ops import DTYPES, TorchOperations
from fourbee.model.checkpoint_files import (
    COMPANIONS,
    open_tensors,
    refuse_other_tensors,
    save_weights,
)
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import weights_tree
from fourbee.training.checkpoint import not_finite
from fourbee.training.lora import load_adapter, save_adapter
from fourbee.training.network import TrainableQwen3
from fourbee.training.recipe import Positions, TrainRecipe

ADAPTER = "adapter"  # beside an exported model whose adapter is also kept on its own


def initial_weights(model: TrainableQwen3, folder: Path) -> None:
    """Copies the checkpoint of `folder` into the model's parameters, one at a time.

    ModelFileError as loading, and for numbers that are not finite.
    """
    stored, ops = open_tensors(folder), TorchOperations()
    for name, tensor in model.named_tensors().items():
        fill(tensor, ops.from_numpy(stored.dense(name)), name, folder)


def initial_adapter(model: TrainableQwen3, folder: Path) -> None:
    """Copies the adapter of `folder`, in PEFT's format, into the model's.

    UsageError where it has other settings, ModelFileError where it was made for another model.
    """
    adapter, settings = load_adapter(folder)
    assert model.lora is not None
    for field in fields(settings):
        found, ours = getattr(settings, field.name), getattr(model.lora, field.name)
        if found != ours:
            raise UsageError(
                f"lora.{field.name} = {_told(ours)}: the adapter of {folder} has {_told(found)}; "
                "expected the same"
            )
    own = model.adapter_tensors()
    refuse_other_tensors(folder, _shapes(own), _shapes(adapter))
    for name, tensor in own.items():
        fill(tensor, adapter[name], name, folder)


def fill(tensor: Tensor, values: Tensor, name: str, source: Path) -> None:
    """Copies values that were read; ModelFileError unless all of them are finite."""
    if not values.isfinite().all():
        raise ModelFileError(f"{source}: {name} holds NaN or infinity; expected finite numbers")
    with torch.no_grad():
        tensor.copy_(values)


def with_positions(config: Qwen3Config, positions: Positions) -> Qwen3Config:
    """The configuration with the positions that a recipe gives it, and dense float32 weights."""
    changes = {name: value for name, value in vars(positions).items() if value is not None}
    return replace(config, quantization=None, torch_dtype="float32", **changes)


def export_model(folder: Path, model: TrainableQwen3, recipe: TrainRecipe) -> None:
    """Writes a checkpoint folder that `fourbee serve` and transformers load.

    Of a model with an adapter the merged weights, and beside them, in `adapter`, the adapter alone
    in PEFT's format. TrainingError for numbers that are not finite; nothing is written then.
    """
    dtype = DTYPES[recipe.export_type]
    tensors = {name: tensor.to(dtype) for name, tensor in model.merged_tensors().items()}
    expect_finite(tensors.items(), recipe.export_type)
    save_weights(folder, weights_tree(model.config, tensors), TorchOperations())
    copy_tokenizer(recipe.tokenizer_folder, folder)
    if model.lora is not None:
        save_adapter(folder / ADAPTER, model.adapter_tensors(), model.lora, recipe.init_from)


def expect_finite(tensors: Iterable[tuple[str, Tensor]], export_type: str) -> None:
    """TrainingError for weights that diverged, or do not fit the type that they are written in."""
    if wrong := not_finite(tensors):
        raise TrainingError(
            f"export_type = {export_type}: {wrong} holds NaN or infinity; expected a type that "
            "holds the weights, or a lower optimizer.learning_rate, in another output"
        )


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The files beside the weights: tokenizer, chat template, generation settings."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _told(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
