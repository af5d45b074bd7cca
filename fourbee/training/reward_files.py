"""Reward models on the disk, as transformers' `Qwen3ForSequenceClassification` of one label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fourbee.foundation.errors import ModelFileError
from fourbee.foundation.json_files import read_json_object
from fourbee.kernels.torch_ops import DTYPES, TorchOperations
from fourbee.model.checkpoint_files import (
    CONFIG_FILE,
    find_tensors,
    refuse_other_tensors,
    write_checkpoint,
)
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes
from fourbee.training.export import copy_tokenizer, expect_finite, fill
from fourbee.training.network import HEAD, SCORE, TrainableQwen3

ARCHITECTURE = "Qwen3ForSequenceClassification"


def export_reward_model(
    folder: Path, model: TrainableQwen3, tokenizer: Path, export_type: str = "float32"
) -> None:
    """Writes weights (with an adapter merged), reward vector, configuration and tokenizer.

    All tensors are of the type `export_type`, as transformers keeps them: of one. TrainingError for
    numbers that are not finite; nothing is written then.
    """
    more = {
        "architectures": [ARCHITECTURE],
        "num_labels": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        # transformers scores the last token that is not this one: it may not be one that ends texts
        # (texts end with the tokenizer's own padding, too).
        "pad_token_id": model.config.vocab_size - 1,
    }
    merged = model.merged_tensors() | {SCORE: model.all_tensors()[SCORE]}
    dtype, ops = DTYPES[export_type], TorchOperations()
    expect_finite(((name, one.to(dtype)) for name, one in merged.items()), export_type)
    config = replace(model.config, torch_dtype=export_type)
    stored = ops.to_numpy(merged[SCORE].to(dtype)).dtype
    layout = {name: (stored, shape) for name, shape in _shapes(config).items()}
    write_checkpoint(
        folder, config, layout, lambda name: ops.to_numpy(merged[name].to(dtype)), more=more
    )
    copy_tokenizer(tokenizer, folder)


def load_reward_model(folder: Path) -> TrainableQwen3:
    """The frozen reward model of a folder. ModelFileError for one that is damaged or is none."""
    path = folder / CONFIG_FILE
    try:
        values = read_json_object(path)
    except FileNotFoundError:
        raise ModelFileError(f"{folder}: no {CONFIG_FILE}; expected a reward model") from None
    if values.get("architectures") != [ARCHITECTURE] or values.get("num_labels", 1) != 1:
        raise ModelFileError(
            f"{path}: architectures = {values.get('architectures')!r}: expected a reward model, "
            f"[{ARCHITECTURE!r}] with one label"
        )
    plain = {key: value for key, value in values.items() if key != "architectures"}
    model = TrainableQwen3(Qwen3Config.from_json(plain, str(path)), scored=True)
    stored, ops = find_tensors(folder), TorchOperations()
    found = {name: one.shape for name, one in stored.items()}
    refuse_other_tensors(folder, _shapes(model.config), found)
    tensors = model.all_tensors()
    for name, one in stored.items():
        fill(tensors[name], ops.from_numpy(one.read()), name, folder)
    return model.requires_grad_(False)


def _shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """What a reward model stores: the network without a head, and the vector."""
    shapes = tensor_shapes(config)
    shapes.pop(HEAD, None)
    return shapes | {SCORE: (1, config.hidden_size)}
