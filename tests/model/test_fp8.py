"""FP8 checkpoints: block by block as defined, cut blocks at the edges, refused by name."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.model.checkpoint_files import check_weights, load_weights, quantize_checkpoint
from fourbee.model.config import Qwen3Config
from fourbee.model.fp8 import Fp8Packing, unpack_blocks

from .conftest import CONFIG, UNTIED, ArrayOperations, message
from .packed_files import (
    WIDE,
    assert_loads,
    packed_model,
    peak_over_size,
    refusal,
    write_packed,
)

OPS = ArrayOperations()
SETTINGS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [8, 8],
    "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
}
UP = "model.layers.0.mlp.up_proj.weight"


def value(byte: int) -> float:
    """Of an e4m3 byte: a sign, four bits of exponent with bias 7, three of mantissa."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 0xF, byte & 7
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def random_bytes(random, shape) -> np.ndarray:
    found = random.integers(0, 256, shape)
    found[(found & 0x7F) == 0x7F] = 0  # not a number
    return found.astype(np.uint8)


def by_hand(bytes_NK, scales, block) -> np.ndarray:
    dense = np.zeros(bytes_NK.shape, dtype=np.float32)
    for n in range(dense.shape[0]):
        for k in range(dense.shape[1]):
            scale = float(scales[n // block[0], k // block[1]])
            # Four bits times 24 are exact in a double: rounded to float32 once.
            dense[n, k] = value(int(bytes_NK[n, k])) * scale
    return dense


def model(config, block=(8, 8), scale_type=ml_dtypes.bfloat16, keeps=lambda name: False):
    random = np.random.default_rng(3)

    def pack(name, shape):
        stored = random_bytes(random, shape)
        blocks = [-(-size // step) for size, step in zip(shape, block, strict=True)]
        scales = random.normal(size=blocks).astype(scale_type)
        parts = {name: stored.view(ml_dtypes.float8_e4m3fn), name + "_scale_inv": scales}
        return parts, by_hand(stored, scales, block)

    return packed_model(config, pack, keeps)


def test_every_byte_means_what_the_format_says() -> None:
    numbers = np.array([b for b in range(256) if b & 0x7F != 0x7F], dtype=np.uint8)[:, None]
    found = unpack_blocks(numbers.view(ml_dtypes.float8_e4m3fn), np.ones((2, 1), "f4"), (128, 128))
    assert found[:, 0].tolist() == [value(int(byte)) for byte in numbers[:, 0]]
    assert found.max() == 448


@settings(derandomize=True, max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_of_matrix_and_block_comes_out_exact(data) -> None:
    size = st.integers(1, 20)
    shape, block = data.draw(st.tuples(size, size)), data.draw(st.tuples(size, size))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale_type = data.draw(st.sampled_from([ml_dtypes.bfloat16, np.float16, np.float32]))
    packing, stored = Fp8Packing(block), random_bytes(random, shape)
    parts = packing.parts(UP, shape)
    scales = random.normal(size=parts[UP + "_scale_inv"].shape).astype(scale_type)
    arrays = {UP: stored.view(ml_dtypes.float8_e4m3fn), UP + "_scale_inv": scales}
    dense = packing.dense(UP, arrays)
    assert dense.dtype == np.float32
    assert np.array_equal(dense, by_hand(stored, scales, block))


def test_blocks_at_the_edges_of_128_are_cut() -> None:
    random = np.random.default_rng(4)
    for shape in ((129, 127), (128, 128), (130, 257)):
        stored = random_bytes(random, shape)
        blocks = tuple(-(-size // 128) for size in shape)
        assert Fp8Packing((128, 128)).parts(UP, shape)[UP + "_scale_inv"].shape == blocks
        scales = random.normal(size=blocks).astype(np.float32)
        found = unpack_blocks(stored.view(ml_dtypes.float8_e4m3fn), scales, (128, 128))
        assert np.array_equal(found, by_hand(stored, scales, (128, 128)))


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("scale_type", [ml_dtypes.bfloat16, np.float32], ids=["bf16", "f32"])
def test_a_checkpoint_loads_as_dense_weights(tmp_path, config, scale_type) -> None:
    stored, dense = model(config, (16, 10), scale_type)
    folder = write_packed(tmp_path, config, SETTINGS | {"weight_block_size": [16, 10]}, stored)
    check_weights(folder)
    assert_loads(folder, config, dense)


def test_progress_counts_scales_too(tmp_path) -> None:
    stored, _ = model(CONFIG)
    reports = []
    folder = write_packed(tmp_path, CONFIG, SETTINGS, stored)
    load_weights(folder, OPS, lambda *report: reports.append(report))
    total = sum(array.nbytes for array in stored.values())
    assert reports[-1][1:] == (total, total)
    assert len({name for name, _, _ in reports}) == len(reports)


@pytest.mark.parametrize(
    ("kept", "keeps"),
    [
        ("model.layers.1.mlp.up_proj", lambda name: name.startswith("model.layers.1.mlp.up_proj")),
        ("model.layers.1", lambda name: ".layers.1." in name),
        ("layers.0.self_attn", lambda name: ".layers.0.self_attn." in name),
        ("mlp", lambda name: ".mlp." in name),
        ("up_proj", lambda name: ".up_proj." in name),
        ("up", lambda name: False),
        ("mlp.up", lambda name: False),
        ("layers.11", lambda name: False),
    ],
)
def test_modules_that_are_not_converted_are_dense(tmp_path, kept, keeps) -> None:
    stored, dense = model(CONFIG, keeps=keeps)
    folder = write_packed(tmp_path, CONFIG, SETTINGS | {"modules_to_not_convert": [kept]}, stored)
    assert_loads(folder, CONFIG, dense)


def test_only_what_the_network_needs_must_be_said(tmp_path) -> None:
    stored, dense = model(CONFIG)
    least = {"quant_method": "fp8", "weight_block_size": [8, 8], "modules_to_not_convert": None}
    assert_loads(write_packed(tmp_path, CONFIG, least, stored), CONFIG, dense)


def test_a_tied_checkpoint_may_hold_a_dense_head(tmp_path) -> None:
    stored, dense = model(CONFIG)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].copy()
    assert_loads(write_packed(tmp_path, CONFIG, SETTINGS, stored), CONFIG, dense)


def test_the_configuration_is_written_back_as_it_was_read() -> None:
    values = CONFIG.to_json() | {"quantization_config": SETTINGS}
    config = Qwen3Config.from_json(values)
    assert config == replace(CONFIG, quantization=config.quantization)
    assert json.loads(json.dumps(config.to_json())) == values
    assert hash(config) == hash(Qwen3Config.from_json(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"fmt": "e5m2"}, "fmt = 'e5m2': expected 'e4m3'"),
        ({"activation_scheme": "static"}, "activation_scheme = 'static': expected 'dynamic'"),
        (
            {"modules_to_not_convert": "lm_head"},
            "modules_to_not_convert = 'lm_head': expected a list of module names, or null",
        ),
        (
            {"modules_to_not_convert": [1]},
            "modules_to_not_convert = [1]: expected a list of module names, or null",
        ),
        *(
            (
                {"weight_block_size": value},
                f"weight_block_size = {value!r}: expected two whole numbers above 0, "
                "like [128, 128]",
            )
            for value in (None, 128, [128], [128, 0], [128, 128.0], [True, True], [1, 2, 3])
        ),
    ],
)
def test_other_settings_are_refused_by_key_and_value(values, expected) -> None:
    config = CONFIG.to_json() | {"quantization_config": SETTINGS | values}
    assert message(Qwen3Config.from_json, config) == f"config.json: quantization_config.{expected}"


def test_tensors_that_do_not_fit_are_named(tmp_path) -> None:
    stored, _ = model(CONFIG)
    scale = UP + "_scale_inv"

    def refused(changes, removed=()) -> str:
        tensors = {name: array for name, array in stored.items() if name not in removed}
        return refusal(tmp_path, CONFIG, SETTINGS, tensors | changes)

    assert refused({}, [scale]) == f"1 missing: {scale}"
    norm_scale = "model.norm.weight_scale_inv"
    assert refused({norm_scale: np.ones((1, 1), "f4")}) == f"1 not expected: {norm_scale}"
    assert refused({scale: np.ones((2, 3), "f4")}) == (
        f"1 of the wrong shape: {scale} is [2, 3], expected [3, 2]"
    )
    assert refused({UP: np.ones((24, 16), "f4")}) == (
        f"1 of the wrong type: {UP} is F32, expected F8_E4M3"
    )
    assert refused({scale: np.ones((3, 2), "i4")}) == (
        f"1 of the wrong type: {scale} is I32, expected BF16 or F16 or F32"
    )
    embedding = "model.embed_tokens.weight"
    assert refused({embedding: np.ones((48, 16), ml_dtypes.float8_e4m3fn)}) == (
        f"1 of the wrong type: {embedding} is F8_E4M3, expected BF16 or F16 or F32"
    )


def test_a_dense_configuration_takes_no_float8(tmp_path) -> None:
    stored, _ = model(CONFIG)
    write_packed(tmp_path, CONFIG, {}, stored)
    text = message(load_weights, tmp_path, OPS)
    assert text.startswith(f"{tmp_path}: tensors 14 not expected: ")
    assert "14 of the wrong type: " in text and "is F8_E4M3, expected BF16 or F16 or F32" in text


def test_a_packed_checkpoint_is_not_packed_again(tmp_path) -> None:
    source = write_packed(tmp_path / "source", CONFIG, SETTINGS, model(CONFIG)[0])
    assert message(quantize_checkpoint, source, tmp_path / "target") == (
        f"{source}: already fp8; expected a dense checkpoint"
    )
    assert not (tmp_path / "target").exists()


def test_memory_peaks_below_1_2_times_the_loaded_size(tmp_path) -> None:
    def pack(name, shape):
        blocks = [-(-size // 128) for size in shape]
        scales = np.ones(blocks, ml_dtypes.bfloat16)
        return {name: np.zeros(shape, ml_dtypes.float8_e4m3fn), name + "_scale_inv": scales}, None

    stored, _ = packed_model(WIDE, pack)
    write_packed(tmp_path, WIDE, SETTINGS | {"weight_block_size": [128, 128]}, stored)
    ratio = peak_over_size(tmp_path)
    print(f"peak over loaded size: {ratio:.3f}")
    assert 1 <= ratio <= 1.2
