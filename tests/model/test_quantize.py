"""`fourbee-packed` folders: written whole or not at all, loaded as packed or dense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fourbee.foundation.errors import CapacityError
from fourbee.kernels.packed import PackedMatrix, pack, unpack
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model import hub
from fourbee.model.checkpoint_files import check_weights, load_weights, quantize_checkpoint
from fourbee.model.packed_format import PackedFormat
from fourbee.model.quantize import FORMATS, quantize_model
from fourbee.model.weights import named_tensors

from .conftest import CONFIG, ArrayOperations, message, random_tensors, write_folder

# 50 and 136 rows are no multiples of 16.
WIDE = replace(
    CONFIG, hidden_size=128, intermediate_size=256, head_dim=32, vocab_size=50,
)  # fmt: skip
UNTIED = replace(WIDE, tie_word_embeddings=False)
INT4, INT8 = FORMATS["int4"], FORMATS["int8"]
FORMS = [INT4, INT8, PackedFormat("int4", 32, method="search"), 
         PackedFormat("int4", 64, True, "search", "int8"), PackedFormat("int4", 128),
         PackedFormat("bf16"), PackedFormat("f32")]  # fmt: skip
UP = "model.layers.0.mlp.up_proj.weight"


class PackedArrayOperations(ArrayOperations):
    """Takes packed matrices as they are."""

    keeps_formats = True

    def from_packed(self, packed: PackedMatrix) -> PackedMatrix:
        return packed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "source", WIDE, random_tensors(WIDE))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("stays")
    return folder


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("config", [WIDE, UNTIED])
def test_a_packed_folder_loads_as_what_its_matrices_unpack_to(tmp_path, config, form) -> None:
    tensors = random_tensors(config)
    folder = write_folder(tmp_path / "source", config, tensors)
    target = tmp_path / "packed"
    reports: list[tuple[str, int, int]] = []
    summary = quantize_model(folder, target, form, lambda *report: reports.append(report))
    assert reports[-1][1] == reports[-1][2]
    check_weights(target)
    ops = TorchOperations()
    dense = load_weights(target, ops)
    packed = load_weights(target, PackedArrayOperations())
    assert dense.config == packed.config == config
    assert packed.blocks[0].gate.rotated == form.rotated
    assert packed.head.rotated == form.of("lm_head.weight").rotated
    assert not dense.head.rotated and not dense.blocks[0].gate.rotated
    assert (packed.head.weight is packed.embedding) == config.tie_word_embeddings
    for name, array in named_tensors(dense).items():
        expected = tensors[name]
        if expected.ndim == 2:
            one = form.of(name)
            expected = unpack(pack(expected, one.kind, one.group, one.rotated, one.method))
        assert (ops.to_numpy(array) == expected).all(), name
    up = packed.blocks[0].up.weight
    assert (unpack(up) == ops.to_numpy(dense.blocks[0].up.weight)).all()
    assert not up.data.flags.writeable and up.data.ctypes.data % 32 == 0
    assert summary.bytes_after == (target / "model.safetensors").stat().st_size
    assert 0 <= summary.mean_error <= summary.worst_error < 0.13


def test_a_folder_says_what_it_is_and_has_what_belongs_to_it(tmp_path, source) -> None:
    target = tmp_path / "packed"
    target.mkdir()  # an empty folder is as good as none
    quantize_model(source, target, INT4)
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    values = json.loads((target / "config.json").read_text())
    assert values["quantization_config"] == {
        "quant_method": "fourbee-packed", "kind": "int4c", "group": 64, "rotated": True,
        "method": "search", "version": 1, "tables": "int8",
    }  # fmt: skip
    stored = load_file(target / "model.safetensors")
    assert (stored[UP].dtype, stored[UP].shape) == (np.uint8, (16, 2 * (64 * 8 + 32) + 64))
    assert stored["model.norm.weight"].dtype == np.float32
    assert "lm_head.weight" not in stored


def test_a_model_packed_by_another_format_is_a_source_too(tmp_path, source) -> None:
    quantize_checkpoint(source, tmp_path / "int8")
    quantize_model(tmp_path / "int8", tmp_path / "packed", INT4)
    read = load_weights(tmp_path / "int8", ArrayOperations()).blocks[0].up.weight
    loaded = load_weights(tmp_path / "packed", ArrayOperations()).blocks[0].up.weight
    assert (loaded == unpack(pack(read, "int4c", 64, rotated=True))).all()
    text = message(quantize_model, tmp_path / "packed", tmp_path / "again", INT8)
    assert text.endswith("already fourbee-packed; expected another checkpoint")


def test_what_ends_it_leaves_nothing(tmp_path, source, monkeypatch) -> None:
    target = tmp_path / "packed"

    def interrupt(name: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(source, target, INT4, interrupt)
    monkeypatch.setattr(hub, "SPARE_BYTES", 10**18)
    with pytest.raises(CapacityError, match="free on this disk, of which 1000000000"):
        quantize_model(source, target, INT4)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    expected = f"{source}: exists; expected a new or an empty folder"
    assert message(quantize_model, source, source, INT4) == expected


def test_widths_that_do_not_fit_are_said_before_anything_is_written(tmp_path) -> None:
    config = replace(WIDE, hidden_size=64)
    source = write_folder(tmp_path / "source", config, random_tensors(config))
    assert message(quantize_model, source, tmp_path / "packed", INT4) == (
        "model.layers.0.self_attn.q_proj.weight: 64 columns, rotated: expected a multiple of 128; "
        "try --method search"
    )


def test_damage_is_one_clear_line(tmp_path, source) -> None:
    target = tmp_path / "packed"
    quantize_model(source, target, INT4)
    file, config = target / "model.safetensors", target / "config.json"
    whole, values, stored = file.read_bytes(), json.loads(config.read_text()), load_file(file)

    def told() -> str:
        text = message(load_weights, target, PackedArrayOperations())
        assert text == message(check_weights, target)
        return text

    file.write_bytes(whole[:-1])
    assert "not a whole safetensors file" in told()
    save_file({name: array for name, array in stored.items() if name != UP}, file)
    assert told() == f"{target}: tensors 1 missing: {UP}"
    save_file(stored | {UP: stored[UP][1:]}, file)
    assert told() == (
        f"{target}: tensors 1 of the wrong shape: {UP} is [15, 1152], expected [16, 1152]"
    )
    save_file(stored | {UP: stored[UP].view(np.int8)}, file)
    assert told() == f"{target}: tensors 1 of the wrong type: {UP} is I8, expected U8"
    file.write_bytes(whole)
    for key, value, expected in (
        ("version", 2, "1"), ("kind", "int3", "'f32' or 'bf16' or 'int8' or 'int4' or 'int4c'"),
        ("group", 0, "32 or 64 or 128"), ("rotated", None, "False or True"),
    ):  # fmt: skip
        changed = values["quantization_config"] | {key: value}
        config.write_text(json.dumps(values | {"quantization_config": changed}))
        assert told() == (f"{config}: quantization_config.{key} = {value!r}: expected {expected}")
