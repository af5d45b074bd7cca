"""What quantised matrices are kept in, told from headers: what loading them makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fourbee.model import gguf_checkpoint
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.groups import AwqPacking, GptqPacking
from fourbee.model.memory_formats import folder_formats, gguf_formats
from fourbee.model.packed_format import PackedFormat
from fourbee.model.weights import named_tensors, tensor_shapes

from .conftest import ArrayOperations, random_tensors, write_folder
from .test_kept_formats import PACKINGS, QUANTISED, WIDE, Keeping, folder, gguf


def kept(weights) -> dict[str, tuple[str, int]]:
    """The kinds and groups of the matrices that were not made dense."""
    tensors = named_tensors(weights).items()
    return {
        name: (array.kind, array.group)
        for name, array in tensors
        if not isinstance(array, np.ndarray)
    }


def told(formats) -> dict[str, tuple[str, int]]:
    return {name: (form.kind, form.group) for name, form in formats.items()}


@pytest.mark.parametrize("packing", [*PACKINGS, AwqPacking(16)], ids=str)
def test_layers_of_awq_and_gptq(tmp_path, packing) -> None:
    config = replace(
        WIDE, num_hidden_layers=1, hidden_size=768, intermediate_size=768, num_attention_heads=12
    )
    path = folder(tmp_path / "model", packing, config)
    config = Qwen3Config.load(path)
    assert told(folder_formats(config)) == kept(load_weights(path, Keeping()))


def test_layers_that_a_checkpoint_keeps_dense(tmp_path) -> None:
    packing = AwqPacking(64, kept=("mlp",))
    config = replace(WIDE, quantization=packing)
    formats = folder_formats(config)
    assert len(formats) == 4 * config.num_hidden_layers
    assert not any("mlp" in name or "embed" in name for name in formats)


def test_groups_that_may_be_out_of_order_are_taken_for_dense() -> None:
    assert not folder_formats(replace(WIDE, quantization=GptqPacking(4, 64, desc_act=True)))


@pytest.mark.parametrize("name", QUANTISED)
def test_matrices_of_a_gguf_file(tmp_path, name) -> None:
    file = gguf(tmp_path / "x", name, "Q6_K")
    config = gguf_checkpoint.read_config(file)
    assert told(gguf_formats(file, config)) == kept(gguf_checkpoint.load_weights(file, Keeping()))


def test_matrices_of_our_own_format_and_of_a_dense_folder(tmp_path) -> None:
    form = PackedFormat("int4c", 64, True, "search", "int8")
    formats = folder_formats(replace(WIDE, quantization=form))
    assert told(formats)["model.embed_tokens.weight"] == ("int8", 64)
    assert told(formats)["model.layers.0.mlp.up_proj.weight"] == ("int4c", 64)
    assert len(formats) == sum(len(shape) == 2 for shape in tensor_shapes(WIDE).values())
    path = write_folder(tmp_path / "dense", WIDE, random_tensors(WIDE))
    assert not folder_formats(Qwen3Config.load(path))
    assert not kept(load_weights(path, ArrayOperations()))
