"""Quantised formats as packed matrices: near their own values, and exact where promised.

The reference is each format's dense reading, which has tests of its own.
"""

import logging
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.packed import PackedMatrix, unpack
from fourbee.kernels.paged_cache import own_cache
from fourbee.model import gguf_checkpoint
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.gguf_file import GgufFile, GgufTensor
from fourbee.model.gguf_packed import packed_matrix
from fourbee.model.gguf_types import TYPES
from fourbee.model.groups import AwqPacking, GptqPacking
from fourbee.model.qwen3 import forward
from fourbee.model.weights import named_tensors, tensor_shapes

from .conftest import CONFIG, ArrayOperations, random_tensors
from .packed_files import is_linear, write_packed

QUANTISED = {kind.name: number for number, kind in TYPES.items() if kind.record is not None}
KINDS = {"Q4_0": "int4", "Q4_1": "int4a", "Q4_K": "int4a"}
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q8_0")
UP = "model.layers.0.mlp.up_proj."
WIDE = replace(
    CONFIG, hidden_size=256, intermediate_size=512, head_dim=64, vocab_size=80,
    torch_dtype="bfloat16",
)  # fmt: skip
needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


class Keeping(ArrayOperations):
    """Takes packed matrices, and those of other formats too."""

    keeps_formats = True

    def from_packed(self, packed: PackedMatrix) -> PackedMatrix:
        return packed


def blocks(random, name: str, count: int) -> bytes:
    """Random blocks of a type with scales like those of a model's weights."""
    kind = TYPES[QUANTISED[name]]
    raw = random.integers(0, 256, count * kind.block_bytes, dtype=np.uint8)
    record = raw.view(kind.record)
    k_type = name.endswith("_K")
    for field in ("scale", "min"):
        if field in record.dtype.names:
            sizes = random.uniform(0.5, 2, count) * 0.01 / (32 if k_type else 1)
            signs = 1 if k_type else random.choice([-1, 1], count)
            record[field] = sizes * signs * (8 if field == "min" and not k_type else 1)
    return raw.tobytes()


def gguf_tensor(path, random, name: str, shape) -> GgufTensor:
    kind = TYPES[QUANTISED[name]]
    data = blocks(random, name, shape[0] * shape[1] // kind.block_values)
    begin = path.stat().st_size if path.exists() else 0
    with path.open("ab") as file:
        file.write(data)
    return GgufTensor(path, kind, shape, begin, len(data))


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("shape", [(1, 256), (37, 512), (1040, 256)])
def test_a_gguf_matrix_is_near_its_own_values(tmp_path, name, shape) -> None:
    tensor = gguf_tensor(tmp_path / "x", np.random.default_rng(1), name, shape)
    packed, dense = packed_matrix(tensor), tensor.read()
    assert packed is not None and packed.kind == KINDS.get(name, "int8")
    assert packed.group == 32 and packed.shape == shape
    found = unpack(packed)
    if name in EXACT:
        assert np.array_equal(found, dense)
        return
    groups, wrong = dense.reshape(shape[0], -1, 32), np.abs(found - dense)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    if name == "Q4_K":
        # Each of two terms by 2^-11: of a minimum m and q * scale, which is at most value + m.
        spread = groups.max(axis=2, keepdims=True) - groups.min(axis=2, keepdims=True)
        bound = (largest + 2 * spread) * 3 * 2**-11
    else:
        bound = largest / 254 + largest * 2**-11 + 127 * 2**-25  # the last: scales below 2^-14
    assert (wrong.reshape(groups.shape) <= bound * 1.01).all()
    error = np.linalg.norm(found - dense) / np.linalg.norm(dense)
    assert error < (1e-3 if name == "Q4_K" else 8e-3)


def words(random, *shape) -> np.ndarray:
    return random.integers(-(2**31), 2**31, shape).astype(np.int32)


def layer_parts(random, packing, module, outputs, inputs) -> dict[str, np.ndarray]:
    """A random layer: any word is one."""
    parts = packing.parts(module + "weight", (outputs, inputs))
    arrays = {
        name: words(random, *part.shape) for name, part in parts.items() if "g_idx" not in name
    }
    scales = (
        random.uniform(0.5, 2, parts[module + "scales"].shape) * 0.1 / 2 ** packing_bits(packing)
    )
    return arrays | {module + "scales": scales.astype(np.float16)}


def packing_bits(packing) -> int:
    return getattr(packing, "bits", 4)


PACKINGS = [
    *(AwqPacking(size) for size in (32, 64, 128, 256, -1)),
    *(GptqPacking(4, size) for size in (32, 64, 128, -1)),
    GptqPacking(4, 96 * 4, checkpoint_format="gptq_v2"),
    GptqPacking(8, 128),
]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_awq_and_gptq_layers_are_near_their_own_values(packing) -> None:
    arrays = layer_parts(np.random.default_rng(2), packing, UP, 1032, 768)
    packed, dense = packing.packed(UP + "weight", arrays), packing.dense(UP + "weight", arrays)
    assert packed is not None and packed.shape == dense.shape
    bits = packing_bits(packing)
    assert packed.kind == ("int4a" if bits == 4 else "int8")
    wrong = np.abs(unpack(packed) - dense)
    step = arrays[UP + "scales"].astype(np.float32).T.repeat(768 // len(arrays[UP + "scales"]), 1)
    # Zero points times scales are rounded; of 8 bits with any zero points, the numbers too.
    bound = step / 128 if bits == 4 else np.abs(dense).max() / 254 * 1.2
    assert (wrong <= bound).all()
    assert np.linalg.norm(wrong) / np.linalg.norm(dense) < (5e-4 if bits == 4 else 8e-3)


def test_8_bits_around_128_stay_exact() -> None:
    random = np.random.default_rng(3)
    packing = GptqPacking(8, 64, checkpoint_format="gptq_v2")
    arrays = layer_parts(random, packing, UP, 24, 128)
    arrays[UP + "qzeros"][:] = np.array([0x80808080], np.uint32).view(np.int32)
    packed = packing.packed(UP + "weight", arrays)
    assert packed is not None and packed.kind == "int8"
    assert np.array_equal(unpack(packed), packing.dense(UP + "weight", arrays))


def test_what_the_kernels_lack_is_left_dense() -> None:
    random = np.random.default_rng(4)
    name = UP + "weight"
    assert AwqPacking(16).packed(name, layer_parts(random, AwqPacking(16), UP, 8, 64)) is None
    packing = GptqPacking(4, 32, desc_act=True)
    arrays = layer_parts(random, packing, UP, 8, 64)
    in_order = np.arange(64, dtype=np.int32) // 32
    assert packing.packed(name, arrays | {UP + "g_idx": in_order}) is not None
    assert packing.packed(name, arrays | {UP + "g_idx": in_order[::-1].copy()}) is None
    arrays[UP + "scales"][0, 0] = np.inf
    assert packing.packed(name, arrays | {UP + "g_idx": in_order}) is None


def folder(path, packing, config=WIDE):
    """A checkpoint of random words; embedding and norms are dense."""
    random, stored = np.random.default_rng(5), {}
    for name, array in random_tensors(config).items():
        if is_linear(name):
            stored |= layer_parts(random, packing, name.removesuffix("weight"), *array.shape)
        else:
            stored[name] = array
    return write_packed(path, config, packing.to_json(), stored)


def gguf(path, layers: str, table: str, config=WIDE) -> GgufFile:
    """A file by its header, over raw blocks."""
    random, tensors = np.random.default_rng(6), {}
    for name, shape in tensor_shapes(config).items():
        stored = gguf_checkpoint.name_in_file(name)
        if len(shape) == 2:
            kind = table if "embed" in name else layers
            tensors[stored] = gguf_tensor(path, random, kind, shape)
        else:
            begin = path.stat().st_size if path.exists() else 0
            with path.open("ab") as file:
                file.write(np.ones(shape, np.float32).tobytes())
            tensors[stored] = GgufTensor(path, TYPES[0], shape, begin, 4 * shape[0])
    metadata = {
        "general.architecture": "qwen3",
        "qwen3.attention.value_length": config.head_dim,
        **{f"qwen3.{key}": getattr(config, name) for name, key in gguf_checkpoint._WHOLE.items()},
        **{
            f"qwen3.{key}": getattr(config, name)
            for name, key in gguf_checkpoint._FRACTIONS.items()
        },
    }
    return GgufFile(path, metadata, tensors)


def logits(weights, ops) -> np.ndarray:
    ids, config = np.arange(40) * 7 % 80, weights.config
    cache = own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    attention = ops.cached_attention([(cache, 40)])
    return ops.linear(forward(weights, ids, np.arange(40), attention, ops).final, weights.head)


def assert_near(load) -> None:
    """Logits of packed weights against dense ones; rounded inputs are between them."""
    native, dense = (open_operations(name, "cpu", "float32") for name in ("native", "numpy"))
    weights = load(native)
    kinds = {m.packed.kind for n, m in named_tensors(weights).items() if is_linear(n)}
    assert kinds <= {"int4", "int4a", "int8"}
    found, expected = logits(weights, native), logits(load(dense), dense)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


@needs_native
@pytest.mark.parametrize("name", QUANTISED)
def test_logits_of_a_gguf_file_are_near_those_of_dense_weights(tmp_path, name) -> None:
    file = gguf(tmp_path / "x", name, "Q6_K" if name == "Q4_K" else name)
    assert_near(lambda ops: gguf_checkpoint.load_weights(file, ops))


@needs_native
@pytest.mark.parametrize(
    "packing", [AwqPacking(128), GptqPacking(4, 64), GptqPacking(8, 32)], ids=str
)
def test_logits_of_a_folder_are_near_those_of_dense_weights(tmp_path, packing) -> None:
    path = folder(tmp_path / "model", packing)
    assert_near(lambda ops: load_weights(path, ops))


@needs_native
def test_quantize_is_for_matrices_of_every_format(tmp_path) -> None:
    path = folder(tmp_path / "model", AwqPacking(128))
    ops = open_operations("native", "cpu", "auto", "bfloat16", "int8")
    weights = load_weights(path, ops)
    assert {m.packed.kind for n, m in named_tensors(weights).items() if is_linear(n)} == {"int8"}


@pytest.mark.parametrize("form", ["awq", "gptq", "Q4_K", "Q6_K"])
def test_memory_peaks_below_1_2_times_the_loaded_size(tmp_path, form) -> None:
    config = replace(WIDE, num_hidden_layers=12, vocab_size=320)
    if form in QUANTISED:
        file = gguf(tmp_path / "x", form, form, config)
        load = partial(gguf_checkpoint.load_weights, file)
    else:
        packing = AwqPacking(128) if form == "awq" else GptqPacking(4, 128)
        load = partial(load_weights, folder(tmp_path / "model", packing, config))
    load(Keeping())  # what is imported and cached on first use
    tracemalloc.start()
    try:
        weights = load(Keeping())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    ratio = peak / sum(array.data.nbytes for array in named_tensors(weights).values())
    print(f"peak over loaded size: {ratio:.3f}")
    assert 1 <= ratio <= 1.2


def test_matrices_that_become_dense_are_told_in_one_line(tmp_path, caplog) -> None:
    path = folder(tmp_path / "model", AwqPacking(16))
    with caplog.at_level(logging.WARNING):
        weights = load_weights(path, Keeping())
    assert isinstance(weights.blocks[0].up.weight, np.ndarray)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 14 quantised matrices become dense: model.layers.0.mlp.gate_proj.weight, "
        "model.layers.0.mlp.up_proj.weight, model.layers.0.mlp.down_proj.weight and 11 more"
    ]
    caplog.clear()
    load_weights(path, ArrayOperations())
    file = gguf(tmp_path / "x", "Q4_K", "Q6_K")
    found = gguf_checkpoint.load_weights(file, Keeping())
    assert found.embedding.kind == "int8" and found.blocks[1].down.weight.kind == "int4a"
    assert not caplog.records
