"""GPTQ checkpoints: 4 and 8 bits, both ways to store zero points, groups by index, refusals."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.model.checkpoint_files import check_weights, load_weights, quantize_checkpoint
from fourbee.model.config import Qwen3Config
from fourbee.model.groups import GptqPacking

from .conftest import CONFIG, UNTIED, ArrayOperations, message
from .packed_files import (
    WIDE,
    assert_loads,
    dequantised,
    pack_bits,
    packed_model,
    peak_over_size,
    refusal,
    write_packed,
)

OPS = ArrayOperations()
SETTINGS = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 8,
    "desc_act": False,
    "sym": False,
    "lm_head": False,
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": ["gptqmodel:4.1.0"]},
}
UP = "model.layers.0.mlp.up_proj."


def layer(random, module, shape, packing: GptqPacking, index="absent", scale_type=np.float16):
    """The parts of a random layer and its dense matrix; `index`: absent, in order, or shuffled."""
    outputs, inputs = shape
    bits, size = packing.bits, inputs if packing.group_size == -1 else packing.group_size
    groups, fields = inputs // size, 32 // bits
    q = random.integers(0, 2**bits, (inputs, outputs))
    less = 1 if packing.checkpoint_format == "gptq" else 0
    z = random.integers(less, 2**bits, (groups, outputs))
    s = random.normal(size=z.shape).astype(scale_type)
    group = np.array([k // size for k in range(inputs)], dtype=np.int32)
    if index == "shuffled":
        random.shuffle(group)
    parts = {
        # Down the inputs for values, along the outputs for zero points; lowest bits first.
        module + "qweight": pack_bits(
            q, bits, (inputs // fields, outputs), lambda k, n: (k * bits // 32, n, k * bits % 32)
        ),
        module + "qzeros": pack_bits(
            z - less,
            bits,
            (groups, outputs // fields),
            lambda g, n: (g, n * bits // 32, n * bits % 32),
        ),
        module + "scales": s,
    }
    if index != "absent":
        parts[module + "g_idx"] = group
    return parts, dequantised(q, z, s, group)


def model(config, packing, index="absent", scale_type=np.float16, keeps=lambda name: False):
    random = np.random.default_rng(6)

    def pack(name, shape):
        return layer(random, name.removesuffix("weight"), shape, packing, index, scale_type)

    return packed_model(config, pack, keeps)


def test_words_written_out_by_hand() -> None:
    arrays = {
        UP + "qweight": np.array([[0x76543210] * 8], dtype=np.int32),  # inputs 0 to 7
        UP + "qzeros": np.array([[0x65432107]], dtype=np.int32),  # 8, then 1 to 7, less one
        UP + "scales": np.full((1, 8), 0.5, dtype=np.float16),
    }
    zeros = [8, 1, 2, 3, 4, 5, 6, 7]
    dense = GptqPacking(4, -1).dense(UP + "weight", arrays)
    assert dense.tolist() == [[0.5 * (q - z) for q in range(8)] for z in zeros]
    dense = GptqPacking(4, -1, checkpoint_format="gptq_v2").dense(UP + "weight", arrays)
    zeros = [7, 0, 1, 2, 3, 4, 5, 6]
    assert dense.tolist() == [[0.5 * (q - z) for q in range(8)] for z in zeros]


def test_the_highest_bits_of_a_word_are_no_sign() -> None:
    arrays = {
        UP + "qweight": np.full((1, 4), -1, dtype=np.int32),
        UP + "qzeros": np.full((1, 1), -1, dtype=np.int32),
        UP + "scales": np.ones((1, 4), dtype=np.float16),
    }
    dense = GptqPacking(8, -1, checkpoint_format="gptq_v2").dense(UP + "weight", arrays)
    assert dense.tolist() == [[0.0] * 4] * 4


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_of_zero_come_back_from_one_subtraction_of_a_whole_word(bits) -> None:
    # As GPTQModel writes `gptq`: from a word of zero points in one go, borrowing between fields.
    fields = 32 // bits
    random = np.random.default_rng(7)
    z = random.integers(0, 2**bits, (1, fields))
    z[0, ::3] = 0
    word = sum(int(zero) << (bits * place) for place, zero in enumerate(z[0]))
    less = (word - sum(1 << (bits * place) for place in range(fields))) % 2**32
    arrays = {
        UP + "qweight": np.zeros((1, fields), dtype=np.int32),
        UP + "qzeros": np.array([[less]], dtype=np.uint32).view(np.int32),
        UP + "scales": np.ones((1, fields), dtype=np.float16),
    }
    dense = GptqPacking(bits, -1).dense(UP + "weight", arrays)
    assert dense[:, 0].tolist() == (-z[0]).tolist()


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_comes_out_exact(data) -> None:
    bits, index = (
        data.draw(st.sampled_from([4, 8])),
        data.draw(st.sampled_from(["absent", "in order", "shuffled"])),
    )
    fields = 32 // bits
    group_size = data.draw(st.sampled_from([2, 8, 16, -1]))
    inputs = 16 * data.draw(st.integers(1, 9))
    shape = (fields * data.draw(st.integers(1, 3)), inputs)
    version = data.draw(st.sampled_from(["gptq", "gptq_v2"]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    packing = GptqPacking(bits, group_size, index == "shuffled", version)
    parts, expected = layer(random, UP, shape, packing, index)
    wanted = packing.parts(UP + "weight", shape)
    assert {name: array.shape for name, array in parts.items()} == {
        name: part.shape for name, part in wanted.items() if name in parts
    }
    assert wanted[UP + "g_idx"].optional == (index != "shuffled")
    dense = packing.dense(UP + "weight", parts)
    assert dense.dtype == np.float32 and np.array_equal(dense, expected)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("bits", "group_size", "index", "version", "scale_type"),
    [
        (4, 8, "absent", "gptq", np.float16),
        (4, 8, "in order", "gptq_v2", ml_dtypes.bfloat16),
        (4, 4, "shuffled", "gptq", np.float16),
        (8, -1, "absent", "gptq", np.float16),
        (8, -1, "in order", "gptq", np.float16),
        (8, 2, "shuffled", "gptq_v2", np.float16),
    ],
)
def test_a_checkpoint_loads_as_dense_weights(
    tmp_path, config, bits, group_size, index, version, scale_type
) -> None:
    packing = GptqPacking(bits, group_size, index == "shuffled", version)
    stored, dense = model(config, packing, index, scale_type)
    values = SETTINGS | {
        "bits": bits,
        "group_size": group_size,
        "desc_act": index == "shuffled",
        "checkpoint_format": version,
    }
    folder = write_packed(tmp_path, config, values, stored)
    check_weights(folder)
    assert_loads(folder, config, dense)


def test_the_index_is_followed_even_where_groups_are_said_to_be_runs(tmp_path) -> None:
    stored, dense = model(CONFIG, GptqPacking(4, 8), "shuffled")
    assert_loads(write_packed(tmp_path, CONFIG, SETTINGS, stored), CONFIG, dense)


def test_modules_that_are_not_converted_and_a_tied_head_are_dense(tmp_path) -> None:
    stored, dense = model(CONFIG, GptqPacking(4, 8), keeps=lambda name: "layers.0" in name)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].copy()
    kept = {"modules_to_not_convert": ["model.layers.0"]}
    assert_loads(write_packed(tmp_path, CONFIG, SETTINGS | kept, stored), CONFIG, dense)


def test_only_what_the_network_needs_must_be_said(tmp_path) -> None:
    stored, dense = model(CONFIG, GptqPacking(4, 8))
    least = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    assert_loads(write_packed(tmp_path, CONFIG, least, stored), CONFIG, dense)
    stored, dense = model(CONFIG, GptqPacking(4, 8, checkpoint_format="gptq_v2"))
    newer = least | {"format": "gptq_v2"}
    assert_loads(write_packed(tmp_path, CONFIG, newer, stored), CONFIG, dense)


def test_the_configuration_is_written_back_as_it_was_read() -> None:
    for changes in ({}, {"bits": 8, "group_size": -1, "desc_act": True}):
        values = CONFIG.to_json() | {"quantization_config": SETTINGS | changes}
        config = Qwen3Config.from_json(values)
        written = json.loads(json.dumps(config.to_json()))
        assert Qwen3Config.from_json(written) == config
        for key in ("quant_method", "bits", "group_size", "desc_act", "checkpoint_format"):
            assert written["quantization_config"][key] == (SETTINGS | changes)[key]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bits": 3}, "bits = 3: expected 4 or 8"),
        ({"bits": "4"}, "bits = '4': expected 4 or 8"),
        ({"bits": None}, "bits = None: expected 4 or 8"),
        ({"desc_act": 1}, "desc_act = 1: expected False or True"),
        (
            {"checkpoint_format": "marlin"},
            "checkpoint_format = 'marlin': expected 'gptq' or 'gptq_v2'",
        ),
        (
            {"checkpoint_format": None, "format": "bitblas"},
            "format = 'bitblas': expected 'gptq' or 'gptq_v2'",
        ),
        ({"pack_dtype": "int64"}, "pack_dtype = 'int64': expected 'int32'"),
        ({"lm_head": True}, "lm_head = True: expected False"),
        ({"is_marlin_format": True}, "is_marlin_format = True: expected False"),
        (
            {"dynamic": {"-:.*down.*": {}}},
            "dynamic = {'-:.*down.*': {}}: expected null: every layer packed alike",
        ),
        (
            {"modules_in_block_to_quantize": [["mlp.up_proj"]]},
            "modules_in_block_to_quantize = [['mlp.up_proj']]: expected null: "
            "every layer packed alike",
        ),
        (
            {"group_size": 0},
            "group_size = 0: expected a whole number above 0, or -1 for one group",
        ),
    ],
)
def test_other_settings_are_refused_by_key_and_value(values, expected) -> None:
    config = CONFIG.to_json() | {"quantization_config": SETTINGS | values}
    assert message(Qwen3Config.from_json, config) == f"config.json: quantization_config.{expected}"


@pytest.mark.parametrize(
    ("packing", "shape", "expected"),
    [
        (GptqPacking(4, 3), (24, 16), "group_size = 3: expected a divisor of 16, the inputs of {}"),
        (
            GptqPacking(4, -1),
            (24, 12),
            "bits = 4: expected a multiple of 8 inputs in every packed layer, {} has 12",
        ),
        (
            GptqPacking(4, -1),
            (12, 16),
            "bits = 4: expected a multiple of 8 outputs in every packed layer, {} has 12",
        ),
        (
            GptqPacking(8, -1),
            (6, 16),
            "bits = 8: expected a multiple of 4 outputs in every packed layer, {} has 6",
        ),
    ],
)
def test_shapes_that_the_format_cannot_hold_are_named(packing, shape, expected) -> None:
    assert message(packing.parts, UP + "weight", shape) == (
        f"config.json: quantization_config.{expected.format('model.layers.0.mlp.up_proj')}"
    )


@pytest.mark.parametrize(("number", "last"), [(-1, 1), (2, 1), (2**31 - 1, 1)])
def test_a_group_that_is_not_there_is_named(tmp_path, number, last) -> None:
    stored, _ = model(CONFIG, GptqPacking(4, 8, desc_act=True), "shuffled")
    stored[UP + "g_idx"][5] = number
    write_packed(tmp_path, CONFIG, SETTINGS | {"desc_act": True}, stored)
    check_weights(tmp_path)  # reads no tensor
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: {UP}g_idx has group {number}: expected whole numbers from 0 to {last}"
    )


def test_tensors_that_do_not_fit_are_named(tmp_path) -> None:
    stored, _ = model(CONFIG, GptqPacking(4, 8), "in order")

    def refused(changes, removed=(), **values) -> str:
        tensors = {name: array for name, array in stored.items() if name not in removed}
        return refusal(tmp_path, CONFIG, SETTINGS | values, tensors | changes)

    assert refused({}, [UP + "g_idx"], desc_act=True) == f"1 missing: {UP}g_idx"
    assert refused({}, [UP + "scales"]) == f"1 missing: {UP}scales"
    assert refused({UP + "bias": np.zeros(24, "f4")}) == f"1 not expected: {UP}bias"
    assert refused({UP + "qweight": np.zeros((16, 3), "i4")}) == (
        f"1 of the wrong shape: {UP}qweight is [16, 3], expected [2, 24]"
    )
    assert refused({UP + "g_idx": np.zeros(24, "i4")}) == (
        f"1 of the wrong shape: {UP}g_idx is [24], expected [16]"
    )
    assert refused({UP + "g_idx": np.zeros(16, "i8")}) == (
        f"1 of the wrong type: {UP}g_idx is I64, expected I32"
    )


def test_a_packed_checkpoint_is_not_packed_again(tmp_path) -> None:
    stored, _ = model(CONFIG, GptqPacking(4, 8))
    source = write_packed(tmp_path / "source", CONFIG, SETTINGS, stored)
    assert message(quantize_checkpoint, source, tmp_path / "target") == (
        f"{source}: already gptq; expected a dense checkpoint"
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_memory_peaks_below_1_2_times_the_loaded_size(tmp_path, bits) -> None:
    def pack(name, shape):
        module, (outputs, inputs), fields = name.removesuffix("weight"), shape, 32 // bits
        return {
            module + "qweight": np.zeros((inputs // fields, outputs), np.int32),
            module + "qzeros": np.zeros((inputs // 128, outputs // fields), np.int32),
            module + "scales": np.zeros((inputs // 128, outputs), np.float16),
            module + "g_idx": np.arange(inputs, dtype=np.int32) // 128,
        }, None

    stored, _ = packed_model(WIDE, pack)
    write_packed(tmp_path, WIDE, SETTINGS | {"bits": bits, "group_size": 128}, stored)
    ratio = peak_over_size(tmp_path)
    print(f"peak over loaded size: {ratio:.3f}")
    assert 1 <= ratio <= 1.2
