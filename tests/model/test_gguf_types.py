"""Values of GGUF's tensor types: llama.cpp's own, bit for bit."""

import numpy as np
import pytest

from fourbee.model.gguf_types import TYPES, TensorType

KINDS = pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
BLOCKS = 500


def random_blocks(kind: TensorType) -> np.ndarray:
    """Any bytes, [blocks, bytes], but for scales, which are finite numbers."""
    random = np.random.default_rng(7)
    raw = random.integers(0, 256, (BLOCKS, kind.block_bytes), dtype=np.uint8)
    if kind.record is not None:
        records = raw.reshape(-1).view(kind.record)
        for field in {"scale", "min"} & set(kind.record.names or ()):
            records[field] = random.normal(0, 0.1, BLOCKS).astype(np.float16)
    return raw


@KINDS
def test_a_type_has_the_number_and_the_sizes_of_llama_cpp(kind) -> None:
    gguf = pytest.importorskip("gguf")
    [number] = [number for number, known in TYPES.items() if known is kind]
    theirs = gguf.GGMLQuantizationType(number)
    assert theirs.name == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_values, kind.block_bytes)


@KINDS
def test_any_blocks_have_the_values_of_llama_cpp_bit_for_bit(kind) -> None:
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(kind)
    ours = kind.values(raw.reshape(-1))
    assert ours.dtype == kind.dtype
    assert ours.shape == (BLOCKS * kind.block_values,)
    if kind.dequantise is None:
        assert ours.tobytes() == raw.tobytes()
    else:
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_llama_cpp_quantises_comes_back_near(name) -> None:
    gguf = pytest.importorskip("gguf")
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    ours = kind.values(packed.reshape(-1)).reshape(values.shape)
    assert (
        ours.tobytes() == gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name]).tobytes()
    )
    assert np.abs(ours - values).max() < 4 / 2 ** int(name[1])


def test_a_block_by_hand() -> None:
    # Scale 0.5; low nibbles 0..15 are the first 16 values, high ones (all 9) the others.
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes(0x90 | i for i in range(16)), np.uint8)
    values = TYPES[2].values(block)
    assert values.tolist() == [0.5 * (i - 8) for i in range(16)] + [0.5] * 16


def test_a_scale_that_is_not_finite_stays_so() -> None:
    block = np.frombuffer(np.float16(np.inf).tobytes() + bytes([8] * 16), np.uint8)
    values = TYPES[2].values(block)
    assert np.isnan(values[:16]).all()
    assert np.isneginf(values[16:]).all()
