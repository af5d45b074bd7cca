"""The packed format: half a step of error at most, loaded by the same loader, refused by others."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from fourbee.model.checkpoint_files import load_weights, quantize_checkpoint
from fourbee.model.int8 import INT8, pack_rows, unpack_rows
from fourbee.model.weights import named_tensors

from .conftest import CONFIG, UNTIED, ArrayOperations, message, random_tensors, write_folder

OPS = ArrayOperations()


def test_a_row_comes_back_within_half_a_step() -> None:
    random = np.random.default_rng(1)
    matrix = (random.normal(size=(64, 256)) * 10.0 ** random.integers(-20, 5, (64, 1))).astype(
        np.float32
    )
    values, scales = pack_rows(matrix)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    assert np.abs(values).max() == 127
    error = np.abs(unpack_rows(values, scales) - matrix)
    assert (error <= 0.5001 * scales[:, None]).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, scales = pack_rows(np.zeros((2, 8), dtype=np.float32))
    assert not values.any() and not unpack_rows(values, scales).any()


def test_bfloat16_rows_are_packed_in_float32() -> None:
    matrix = np.linspace(-1, 1, 64).reshape(2, 32).astype(ml_dtypes.bfloat16)
    assert (pack_rows(matrix)[0] == pack_rows(matrix.astype(np.float32))[0]).all()


def test_a_quantised_checkpoint_loads_close_to_its_source(tmp_path) -> None:
    for config in (CONFIG, UNTIED):
        tensors = random_tensors(config)
        source = write_folder(tmp_path / "source", config, tensors)
        (source / "tokenizer.json").write_text("{}")
        (source / "generation_config.json").write_text('{"top_k": 20}')
        (source / "training_notes.txt").write_text("stays")
        target = tmp_path / "packed"
        quantize_checkpoint(source, target)
        assert sorted(path.name for path in target.iterdir()) == [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
        weights = load_weights(target, OPS)
        assert weights.config == config  # in memory it is a model like any other
        for name, array in named_tensors(weights).items():
            step = np.abs(tensors[name]).max(axis=-1, keepdims=True) / 127
            allowed = 0.5001 * step if array.ndim == 2 else 0
            assert (np.abs(array - tensors[name]) <= allowed).all(), name


def test_the_file_is_a_quarter_of_float32_and_says_what_it_is(tmp_path) -> None:
    config = replace(CONFIG, hidden_size=256, intermediate_size=512, vocab_size=1024)
    source = write_folder(tmp_path / "source", config, random_tensors(config))
    target = tmp_path / "packed"
    quantize_checkpoint(source, target)
    dense, packed = ((f / "model.safetensors").stat().st_size for f in (source, target))
    assert packed < 0.28 * dense
    stored = load_file(target / "model.safetensors")
    matrix = stored["model.layers.0.mlp.up_proj.weight"]
    scale = stored["model.layers.0.mlp.up_proj.weight.scale"]
    assert (matrix.dtype, matrix.shape) == (np.int8, (512, 256))
    assert (scale.dtype, scale.shape) == (np.float32, (512,))
    assert stored["model.norm.weight"].dtype == np.float32
    values = json.loads((target / "config.json").read_text())
    assert values["quantization_config"] == {"quant_method": "fourbee-int8"}


def test_what_does_not_fit_the_format_is_named(tmp_path) -> None:
    source = write_folder(tmp_path / "source", CONFIG, random_tensors(CONFIG))
    target = tmp_path / "packed"
    quantize_checkpoint(source, target)
    assert message(quantize_checkpoint, target, tmp_path / "again") == (
        f"{target}: already fourbee-int8; expected a dense checkpoint"
    )
    stored = load_file(target / "model.safetensors")
    name = "model.embed_tokens.weight"
    scale = stored.pop(f"{name}.scale")
    save_file(stored, target / "model.safetensors")
    assert message(load_weights, target, OPS) == f"{target}: tensors 1 missing: {name}.scale"
    stored |= {f"{name}.scale": scale, name: stored[name].astype(np.float32)}
    save_file(stored, target / "model.safetensors")
    assert message(load_weights, target, OPS) == (
        f"{target}: tensors 1 of the wrong type: {name} is F32, expected I8"
    )
    write_folder(target, replace(CONFIG, quantization=INT8), random_tensors(CONFIG))
    assert "tensors 15 missing: " in message(load_weights, target, OPS)
