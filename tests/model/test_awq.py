"""AWQ checkpoints: the interleave bit by bit, groups of inputs, what is refused and how."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourbee.model.checkpoint_files import check_weights, load_weights, quantize_checkpoint
from fourbee.model.config import Qwen3Config
from fourbee.model.groups import AwqPacking

from .conftest import CONFIG, UNTIED, ArrayOperations, message
from .packed_files import (
    WIDE,
    assert_loads,
    dequantised,
    int32,
    pack_bits,
    packed_model,
    peak_over_size,
    refusal,
    write_packed,
)

OPS = ArrayOperations()
SETTINGS = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 8,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": None,
}
UP = "model.layers.0.mlp.up_proj."
# The columns of a word's eight, from its lowest four bits to its highest.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack_columns(values) -> np.ndarray:
    """`[R, N]` as words `[R, N / 8]`."""
    rows, columns = values.shape
    return pack_bits(
        values, 4, (rows, columns // 8), lambda r, c: (r, c // 8, 4 * ORDER.index(c % 8))
    )


def layer(random, module, shape, group_size, scale_type=np.float16):
    """The parts of a random layer and its dense matrix."""
    outputs, inputs = shape
    size = inputs if group_size == -1 else group_size
    q, z = (
        random.integers(0, 16, (inputs, outputs)),
        random.integers(0, 16, (inputs // size, outputs)),
    )
    s = random.normal(size=z.shape).astype(scale_type)
    parts = {
        module + "qweight": pack_columns(q),
        module + "qzeros": pack_columns(z),
        module + "scales": s,
    }
    return parts, dequantised(q, z, s, [k // size for k in range(inputs)])


def model(config, group_size=8, scale_type=np.float16, keeps=lambda name: False):
    random = np.random.default_rng(5)

    def pack(name, shape):
        return layer(random, name.removesuffix("weight"), shape, group_size, scale_type)

    return packed_model(config, pack, keeps)


def test_a_word_written_out_by_hand() -> None:
    # 0x75316420 holds columns 0, 2, 4, 6, 1, 3, 5, 7 from its lowest four bits on.
    arrays = {
        UP + "qweight": np.array([[0x75316420]], dtype=np.int32),
        UP + "qzeros": np.array([[0x11111111]], dtype=np.int32),
        UP + "scales": np.full((1, 8), 2, dtype=np.float16),
    }
    dense = AwqPacking(-1).dense(UP + "weight", arrays)
    assert dense.tolist() == [[2.0 * (column - 1)] for column in range(8)]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_comes_out_exact(data) -> None:
    group_size = data.draw(st.sampled_from([1, 2, 3, 8, 16, -1]))
    groups = data.draw(st.integers(1, 12))
    shape = (8 * data.draw(st.integers(1, 4)), groups * (7 if group_size == -1 else group_size))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts, expected = layer(random, UP, shape, group_size)
    packing = AwqPacking(group_size)
    wanted = packing.parts(UP + "weight", shape)
    assert {name: array.shape for name, array in parts.items()} == {
        name: part.shape for name, part in wanted.items()
    }
    dense = packing.dense(UP + "weight", parts)
    assert dense.dtype == np.float32 and np.array_equal(dense, expected)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("group_size", [4, 8, -1])
@pytest.mark.parametrize("scale_type", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_a_checkpoint_loads_as_dense_weights(tmp_path, config, group_size, scale_type) -> None:
    stored, dense = model(config, group_size, scale_type)
    folder = write_packed(tmp_path, config, SETTINGS | {"group_size": group_size}, stored)
    check_weights(folder)
    assert_loads(folder, config, dense)


def test_modules_that_are_not_converted_and_a_tied_head_are_dense(tmp_path) -> None:
    stored, dense = model(CONFIG, keeps=lambda name: "o_proj" in name or ".layers.1.mlp" in name)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].copy()
    kept = {"modules_to_not_convert": ["o_proj", "model.layers.1.mlp"]}
    assert_loads(write_packed(tmp_path, CONFIG, SETTINGS | kept, stored), CONFIG, dense)


def test_the_configuration_is_written_back_as_it_was_read() -> None:
    values = CONFIG.to_json() | {"quantization_config": SETTINGS | {"version": "GEMM"}}
    written = json.loads(json.dumps(Qwen3Config.from_json(values).to_json()))
    assert written["quantization_config"] == SETTINGS | {"modules_to_not_convert": []}
    assert Qwen3Config.from_json(written) == Qwen3Config.from_json(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bits": 8}, "bits = 8: expected 4"),
        ({"bits": None}, "bits = None: expected 4"),
        ({"bits": 4.0}, "bits = 4.0: expected 4"),
        ({"version": "gemv"}, "version = 'gemv': expected 'gemm' or 'GEMM'"),
        ({"zero_point": False}, "zero_point = False: expected True"),
        ({"zero_point": 1}, "zero_point = 1: expected True"),
        *(
            (
                {"group_size": value},
                f"group_size = {value!r}: expected a whole number above 0, or -1 for one group",
            )
            for value in (None, 0, -2, 128.0, "128", True)
        ),
    ],
)
def test_other_settings_are_refused_by_key_and_value(values, expected) -> None:
    config = CONFIG.to_json() | {"quantization_config": SETTINGS | values}
    assert message(Qwen3Config.from_json, config) == f"config.json: quantization_config.{expected}"


def test_shapes_that_the_format_cannot_hold_are_named(tmp_path) -> None:
    stored, _ = model(CONFIG)
    write_packed(tmp_path, CONFIG, SETTINGS | {"group_size": 5}, stored)
    expected = (
        "config.json: quantization_config.group_size = 5: expected a divisor of 16, "
        "the inputs of model.layers.0.self_attn.q_proj"
    )
    assert message(check_weights, tmp_path) == message(load_weights, tmp_path, OPS) == expected
    assert message(AwqPacking(8).parts, UP + "weight", (12, 16)) == (
        "config.json: quantization_config.bits = 4: expected a multiple of 8 outputs in every "
        "packed layer, model.layers.0.mlp.up_proj has 12"
    )


def test_tensors_that_do_not_fit_are_named(tmp_path) -> None:
    stored, _ = model(UNTIED)

    def refused(changes, removed=()) -> str:
        tensors = {name: array for name, array in stored.items() if name not in removed}
        return refusal(tmp_path, UNTIED, SETTINGS, tensors | changes)

    names = [UP + part for part in ("qweight", "qzeros", "scales")]
    dense = {UP + "weight": np.ones((24, 16), "f4")}
    assert refused(dense, names) == f"3 missing: {', '.join(names)}; 1 not expected: {UP}weight"
    assert refused({UP + "g_idx": np.ones(16, "i4")}) == f"1 not expected: {UP}g_idx"
    assert refused({UP + "qweight": int32([[0] * 3] * 8)}) == (
        f"1 of the wrong shape: {UP}qweight is [8, 3], expected [16, 3]"
    )
    assert refused({UP + "qzeros": np.zeros((2, 3), "i8")}) == (
        f"1 of the wrong type: {UP}qzeros is I64, expected I32"
    )
    assert refused({UP + "scales": np.zeros((2, 24), "i4")}) == (
        f"1 of the wrong type: {UP}scales is I32, expected BF16 or F16 or F32"
    )
    head = [f"lm_head.{part}" for part in ("qweight", "qzeros", "scales")]
    packed_head = dict(zip(head, (stored[name] for name in names), strict=True))
    assert refused(packed_head, ["lm_head.weight"]) == (
        f"1 missing: lm_head.weight; 3 not expected: {', '.join(head)}"
    )


def test_a_packed_checkpoint_is_not_packed_again(tmp_path) -> None:
    source = write_packed(tmp_path / "source", CONFIG, SETTINGS, model(CONFIG)[0])
    assert message(quantize_checkpoint, source, tmp_path / "target") == (
        f"{source}: already awq; expected a dense checkpoint"
    )


def test_memory_peaks_below_1_2_times_the_loaded_size(tmp_path) -> None:
    def pack(name, shape):
        module, (outputs, inputs) = name.removesuffix("weight"), shape
        return {
            module + "qweight": np.zeros((inputs, outputs // 8), np.int32),
            module + "qzeros": np.zeros((inputs // 128, outputs // 8), np.int32),
            module + "scales": np.zeros((inputs // 128, outputs), np.float16),
        }, None

    stored, _ = packed_model(WIDE, pack)
    write_packed(tmp_path, WIDE, SETTINGS | {"group_size": 128}, stored)
    ratio = peak_over_size(tmp_path)
    print(f"peak over loaded size: {ratio:.3f}")
    assert 1 <= ratio <= 1.2
