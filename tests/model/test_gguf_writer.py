"""GGUF files that we write: llama.cpp's bytes, read back equal, whole or not there."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from fourbee.foundation.errors import CapacityError, FourbeeError, UsageError
from fourbee.model import hub
from fourbee.model.checkpoint_files import quantize_checkpoint
from fourbee.model.gguf_checkpoint import open_tensors, read_config
from fourbee.model.gguf_export import FILE_TYPES, export_gguf
from fourbee.model.gguf_file import read_gguf
from fourbee.model.gguf_quants import WRITTEN, encode
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import TABLES
from fourbee.model.quantize import quantize_model

from .conftest import CONFIG, message, random_tensors, write_folder

WIDE = replace(CONFIG, hidden_size=64, intermediate_size=96, head_dim=16)
UNTIED = replace(WIDE, tie_word_embeddings=False)
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def encoded(name: str, values: np.ndarray) -> np.ndarray:
    return encode(WRITTEN[name][1], values, "w")


def hard_rows() -> np.ndarray:
    """Rows of ordinary numbers, of halves, of zeros, of ties, and very small or large."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((400, 64), np.float32)
    rows[100:200] *= 10.0 ** random.integers(-6, 4, (100, 1))
    rows[200:300] = random.integers(-127, 128, (100, 64)) / 2
    rows[300] = 0
    rows[301:350] = random.choice([-1, 1], (49, 64))
    rows[350:, ::3] = -0.0
    return rows


@pytest.mark.parametrize("name", WRITTEN)
def test_the_bytes_are_those_of_llama_cpps_reference(name) -> None:
    gguf = pytest.importorskip("gguf")
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
        values = hard_rows().astype(dtype)
        of = gguf.GGMLQuantizationType[name]
        theirs = gguf.quants.quantize(values.astype(np.float32), of)
        assert encoded(name, values).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_numbers_that_a_type_cannot_hold_are_refused(name) -> None:
    for value in (1e30, np.inf, np.nan):
        values = np.full((1, 32), value, np.float32)
        assert message(encoded, name, values).startswith("w: has")


@pytest.mark.parametrize("config", [WIDE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("form", FILE_TYPES)
def test_a_file_reads_back_as_it_was_written(tmp_path, config, form) -> None:
    dtype = "bfloat16" if form == "bf16" else "float32"
    tensors = random_tensors(config, dtype)
    folder = write_folder(tmp_path / "model", replace(config, torch_dtype=dtype), tensors)
    seen: list[tuple[str, int, int]] = []
    target = tmp_path / "new" / "model.gguf"
    about = {"general.name": "model", "general.sampling.temp": 0.5, "an.array": ["a", "é"],
             "numbers": np.array([1, -2], np.int32), "flag": True}  # fmt: skip
    summary = export_gguf(folder, target, form, about, lambda *step: seen.append(step))
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    assert summary.bytes_after == target.stat().st_size
    assert summary.tensors == len(tensors) == len(seen)
    assert seen[-1][1] == seen[-1][2]
    file = read_gguf(target)
    assert all(tensor.offset % 32 == 0 for tensor in file.tensors.values())
    read = file.metadata
    assert (read["general.name"], read["flag"], read["an.array"]) == ("model", True, ["a", "é"])
    assert (read["numbers"].tolist(), read["general.sampling.temp"]) == ([1, -2], 0.5)
    assert read["general.file_type"] == FILE_TYPES[form]
    known = {"f32": "float32", "f16": "float16"}
    assert read_config(file) == replace(config, torch_dtype=known.get(form, "bfloat16"))
    opened = open_tensors(file)
    for name, values in tensors.items():
        got = opened.dense(name)
        if values.ndim == 1:
            assert got.dtype == np.float32 and np.array_equal(got, values.astype(np.float32))
        elif form in DTYPES:
            assert got.dtype == DTYPES[form]
            assert got.tobytes() == values.astype(DTYPES[form]).tobytes()
        else:
            kind = WRITTEN["Q8_0" if name in TABLES else form.upper()][1]
            expected = kind.values(encode(kind, values, name)).reshape(values.shape)
            assert got.tobytes() == expected.tobytes()
            assert np.abs(got - values).max() < (0.05 if kind.name == "Q8_0" else 0.8)


def test_llama_cpps_own_reader_reads_it(tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    tensors = random_tensors(WIDE)
    folder = write_folder(tmp_path / "model", WIDE, tensors)
    export_gguf(folder, tmp_path / "m.gguf", "q8_0", {"general.name": "model"})
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {tensor.name for tensor in reader.tensors} == set(read_gguf(tmp_path / "m.gguf").tensors)
    assert reader.fields["qwen3.rope.freq_base"].contents() == 1e6
    assert reader.fields["general.quantization_version"].contents() == 2
    [embedding] = [tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"]
    theirs = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    assert np.abs(theirs - tensors["model.embed_tokens.weight"]).max() < 0.05


def test_packed_folders_and_gguf_files_are_sources_too(tmp_path) -> None:
    config = replace(WIDE, hidden_size=128, intermediate_size=128, head_dim=32)
    dense = write_folder(tmp_path / "dense", config, random_tensors(config))
    quantize_checkpoint(dense, tmp_path / "int8")
    quantize_model(dense, tmp_path / "packed", PackedFormat("int8", 64))
    export_gguf(dense, tmp_path / "first.gguf", "bf16", {})
    for source in ("int8", "packed", "first.gguf"):
        target = tmp_path / f"{source}.out.gguf"
        export_gguf(tmp_path / source, target, "f32", {})
        got = open_tensors(read_gguf(target)).dense("model.layers.0.mlp.up_proj.weight")
        original = random_tensors(config)["model.layers.0.mlp.up_proj.weight"]
        assert np.abs(got - original).max() < 0.05


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    folder = write_folder(tmp_path / "model", CONFIG, random_tensors(CONFIG))
    out = tmp_path / "out"
    out.mkdir()

    def refusal(error: type[FourbeeError], name: str, form: str = "f32") -> str:
        with pytest.raises(error):
            export_gguf(folder, out / name, form, {})
        text = message(export_gguf, folder, out / name, form, {})
        assert not list(out.glob(".*")) and not (out / "m.gguf").exists()
        return text

    assert refusal(UsageError, "m.bin").endswith("m.bin: expected a file name that ends in .gguf")
    assert refusal(UsageError, "m.gguf", "q9").startswith("--type q9: expected f32, f16, bf16,")
    assert "rows of 16; expected a multiple of 32, or --type f16" in refusal(
        UsageError, "m.gguf", "q8_0"
    )
    (out / "old.gguf").write_bytes(b"precious")
    assert refusal(UsageError, "old.gguf").endswith("exists; expected the name of a new file")
    assert (out / "old.gguf").read_bytes() == b"precious"
    monkeypatch.setattr(hub, "SPARE_BYTES", 1 << 60)
    told = "GB free on this disk, of which 1152921504.61 GB are to stay free"
    assert told in refusal(CapacityError, "m.gguf")


def test_an_error_half_way_leaves_nothing(tmp_path) -> None:
    tensors = random_tensors(WIDE)
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = np.nan
    folder = write_folder(tmp_path / "model", WIDE, tensors)
    out = tmp_path / "out" / "m.gguf"
    text = message(export_gguf, folder, out, "q8_0", {})
    assert text.startswith(str(folder)) and "blk.1.ffn_down.weight: has" in text
    assert not list(out.parent.iterdir())

    def stop(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(folder, out, "f32", {}, stop)
    assert not list(out.parent.iterdir())
