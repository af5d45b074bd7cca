"""A tiny configuration, its tensors in plain NumPy, and operations that only move arrays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fourbee.foundation.errors import FourbeeError
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes

CONFIG = Qwen3Config(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    torch_dtype="float32",
)
UNTIED = replace(CONFIG, tie_word_embeddings=False)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class ArrayOperations:
    """The part of `Operations` that a loader needs, with NumPy arrays of one type."""

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = DTYPES[dtype]

    def from_numpy(self, array: np.ndarray, table: bool = False) -> np.ndarray:
        return array.astype(self.dtype)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.copy()


def random_tensors(config: Qwen3Config, dtype: str = "float32") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=shape).astype(DTYPES[dtype])
        for name, shape in tensor_shapes(config).items()
    }


def write_folder(folder: Path, config: Qwen3Config, tensors: dict[str, np.ndarray]) -> Path:
    """A checkpoint written by the safetensors library, not by ours."""
    import json

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    save_file(tensors, folder / "model.safetensors")
    return folder


def message(call: Callable[..., Any], *arguments: Any) -> str:
    """The text of the FourbeeError that the call raises; one line."""
    with pytest.raises(FourbeeError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text
