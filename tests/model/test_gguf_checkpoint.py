"""Qwen3 in GGUF files: loaded as the original, and refused clearly where it is another network."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fourbee.foundation.errors import ModelFileError
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_checkpoint import (
    check_weights,
    load_weights,
    read_config,
    recommended_sampling,
)
from fourbee.model.gguf_file import GgufFile, GgufTensor, read_gguf
from fourbee.model.gguf_types import TYPES
from fourbee.model.weights import named_tensors, tensor_shapes

from .conftest import CONFIG, UNTIED, ArrayOperations, message, random_tensors

OPS = ArrayOperations()
# Rows of whole blocks: 32 values for most types.
WIDE = replace(CONFIG, hidden_size=64, intermediate_size=96, head_dim=16)
PATH = Path("model.gguf")
METADATA = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 2,
    "qwen3.embedding_length": 16,
    "qwen3.feed_forward_length": 24,
    "qwen3.attention.head_count": 4,
    "qwen3.attention.head_count_kv": 2,
    "qwen3.attention.key_length": 8,
    "qwen3.attention.value_length": 8,
    "qwen3.context_length": 64,
    "qwen3.rope.freq_base": 1e6,
    "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
}
LAYER = {
    "attn_norm": (16,),
    "attn_q": (32, 16),
    "attn_k": (16, 16),
    "attn_v": (16, 16),
    "attn_q_norm": (8,),
    "attn_k_norm": (8,),
    "attn_output": (16, 32),
    "ffn_norm": (16,),
    "ffn_gate": (24, 16),
    "ffn_up": (24, 16),
    "ffn_down": (16, 24),
}
SHAPES = {
    "token_embd.weight": (48, 16),
    "output_norm.weight": (16,),
    **{f"blk.{n}.{name}.weight": shape for n in (0, 1) for name, shape in LAYER.items()},
}


def described(changes=None, shapes=SHAPES, types=TYPES[0]) -> GgufFile:
    """A file by its header; a change to None leaves a key out."""
    metadata = {**METADATA, **(changes or {})}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = {name: GgufTensor(PATH, types, shape, 0, 0) for name, shape in shapes.items()}
    return GgufFile(PATH, metadata, tensors)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_file_of_floats_loads_equal(tmp_path, write_gguf, config, kind) -> None:
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    tensors = random_tensors(config)
    for name, values in tensors.items():
        if values.ndim == 2:
            tensors[name] = values.astype(dtype).astype(np.float32)
    file = read_gguf(write_gguf(tmp_path / "model.gguf", config, tensors, kind))
    weights = load_weights(file, OPS)
    assert weights.config == replace(config, torch_dtype=np.dtype(dtype).name)
    assert (weights.head.weight is weights.embedding) == config.tie_word_embeddings
    found = named_tensors(weights)
    assert list(found) == list(tensor_shapes(config))
    for name, values in found.items():
        assert np.array_equal(values, tensors[name]), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantised_file_loads_as_llama_cpp_dequantises_it(tmp_path, write_gguf, kind) -> None:
    gguf = pytest.importorskip("gguf")
    of = gguf.GGMLQuantizationType[kind]
    tensors = random_tensors(WIDE)
    file = read_gguf(write_gguf(tmp_path / "model.gguf", WIDE, tensors, kind))
    weights = load_weights(file, OPS)
    assert weights.config == replace(WIDE, torch_dtype="bfloat16")
    for name, values in named_tensors(weights).items():
        expected = tensors[name]
        if expected.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, of), of)
        assert np.array_equal(values, expected), name


def test_the_largest_tensor_is_read_first(tmp_path, write_gguf) -> None:
    file = read_gguf(write_gguf(tmp_path / "model.gguf", CONFIG, random_tensors(CONFIG)))
    sizes = []

    class Watching(ArrayOperations):
        def from_numpy(self, array, table=False):
            sizes.append(array.size)
            return super().from_numpy(array)

    load_weights(file, Watching())
    assert sizes == sorted(sizes, reverse=True)


def test_the_header_alone_gives_the_configuration() -> None:
    file = described()
    check_weights(file)
    assert read_config(file) == CONFIG
    untied = described(shapes={**SHAPES, "output.weight": (48, 16)})
    check_weights(untied)
    assert read_config(untied) == UNTIED
    assert read_config(described(types=TYPES[12])).torch_dtype == "bfloat16"
    harmless = {
        "split.count": 1,
        "qwen3.rope.dimension_count": 8,
        "qwen3.rope.scaling.type": "none",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.attention.causal": True,
        "general.name": "x",
    }
    assert read_config(described(harmless)) == CONFIG


def test_the_published_models_have_their_configurations(test_data) -> None:
    for name in ("Qwen3-0.6B", "Qwen3-4B-Instruct-2507", "Qwen3-8B", "Qwen3-14B"):
        config = Qwen3Config.load(test_data / "qwen3_configs" / name)
        changes = {
            "qwen3.block_count": config.num_hidden_layers,
            "qwen3.embedding_length": config.hidden_size,
            "qwen3.feed_forward_length": config.intermediate_size,
            "qwen3.attention.head_count": config.num_attention_heads,
            "qwen3.attention.head_count_kv": config.num_key_value_heads,
            "qwen3.attention.key_length": config.head_dim,
            "qwen3.attention.value_length": config.head_dim,
            "qwen3.context_length": config.max_position_embeddings,
            "qwen3.rope.freq_base": config.rope_theta,
        }
        head = {} if config.tie_word_embeddings else {"output.weight": (151936, 1)}
        embedding = {"token_embd.weight": (151936, config.hidden_size)}
        # As many tensors as layers, which is what the configuration asks for.
        layers = {f"blk.{n}.x": (1,) for n in range(config.num_hidden_layers)}
        file = described(changes, embedding | head | layers, TYPES[30])
        assert read_config(file) == replace(config, torch_dtype="bfloat16"), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"general.architecture": "qwen3moe"},
            "general.architecture = 'qwen3moe': expected 'qwen3'",
        ),
        ({"general.architecture": None}, "general.architecture = None: expected 'qwen3'"),
        (
            {"general.architecture": np.zeros(9)},
            "general.architecture = an array of 9: expected 'qwen3'",
        ),
        (
            {"general.architecture": "x" * 99},
            f"general.architecture = '{'x' * 40}...': expected 'qwen3'",
        ),
        (
            {"split.count": 3},
            "one of several parts; join them with `llama-gguf-split --merge`",
        ),
        ({"qwen3.block_count": None}, "missing key 'qwen3.block_count'"),
        ({"qwen3.rope.freq_base": None}, "missing key 'qwen3.rope.freq_base'"),
        (
            {"qwen3.block_count": "2"},
            "qwen3.block_count = '2': expected a whole number of at least 1",
        ),
        (
            {"qwen3.attention.head_count": np.array([4, 4])},
            "qwen3.attention.head_count = an array of 2: expected a whole number of at least 1",
        ),
        (
            {"qwen3.context_length": 0},
            "qwen3.context_length = 0: expected a whole number of at least 1",
        ),
        (
            {"qwen3.embedding_length": True},
            "qwen3.embedding_length = True: expected a whole number of at least 1",
        ),
        (
            {"qwen3.rope.freq_base": float("nan")},
            "qwen3.rope.freq_base = nan: expected a number of more than 0",
        ),
        (
            {"qwen3.attention.layer_norm_rms_epsilon": -1e-6},
            "qwen3.attention.layer_norm_rms_epsilon = -1e-06: expected a number of more than 0",
        ),
        (
            {"qwen3.block_count": 2**32 - 1},
            f"qwen3.block_count = {2**32 - 1}: more layers than tensors (24)",
        ),
        (
            {"qwen3.attention.value_length": 4},
            "qwen3.attention.value_length = 4: expected qwen3.attention.key_length = 8",
        ),
        (
            {"qwen3.rope.dimension_count": 4},
            "qwen3.rope.dimension_count = 4: expected qwen3.attention.key_length = 8",
        ),
        (
            {"qwen3.rope.scaling.type": "yarn"},
            "qwen3.rope.scaling.type = 'yarn': expected no rope scaling (plain RoPE)",
        ),
        (
            {"qwen3.rope.scaling.factor": 4.0},
            "qwen3.rope.scaling.factor = 4.0: expected no rope scaling (plain RoPE)",
        ),
        ({"qwen3.rope.scale_linear": 2.0}, "qwen3.rope.scale_linear = 2.0: expected 1.0"),
        (
            {"qwen3.attention.sliding_window": 4096},
            "qwen3.attention.sliding_window = 4096: expected 0",
        ),
        ({"qwen3.attention.causal": False}, "qwen3.attention.causal = False: expected True"),
        ({"qwen3.expert_count": [1]}, "qwen3.expert_count = an array of 1: expected 0"),
        (
            {"qwen3.attention.head_count_kv": 3},
            "num_attention_heads = 4: expected a multiple of num_key_value_heads = 3",
        ),
        (
            {"qwen3.attention.key_length": 7, "qwen3.attention.value_length": 7},
            "head_dim = 7: expected an even number",
        ),
    ],
)
def test_metadata_of_another_network_are_named(changes, expected) -> None:
    assert message(read_config, described(changes)) == f"model.gguf: {expected}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"token_embd.weight": None},
            "token_embd.weight is missing, expected a matrix of one row a token",
        ),
        (
            {"token_embd.weight": (48,)},
            "token_embd.weight is [48], expected a matrix of one row a token",
        ),
        (
            {"blk.1.ffn_up.weight": None, "rope_freqs.weight": (4,), "output_norm.weight": (17,)},
            "tensors 1 missing: blk.1.ffn_up.weight; 1 not expected: rope_freqs.weight; "
            "1 of the wrong shape: output_norm.weight is [17], expected [16]",
        ),
        (
            {"blk.0.attn_q.bias": (32,), "blk.0.attn_q.weight": (16, 32)},
            "tensors 1 not expected: blk.0.attn_q.bias; 1 of the wrong shape: "
            "blk.0.attn_q.weight is [16, 32], expected [32, 16]",
        ),
        (
            {f"blk.1.{name}.weight": None for name in LAYER},
            "tensors 11 missing: blk.1.attn_norm.weight, blk.1.attn_q.weight, "
            "blk.1.attn_k.weight and 8 more",
        ),
    ],
)
def test_other_tensors_are_named(changes, expected) -> None:
    shapes = {name: shape for name, shape in {**SHAPES, **changes}.items() if shape is not None}
    file = described(shapes=shapes)
    assert message(check_weights, file) == f"model.gguf: {expected}"
    assert message(load_weights, file, OPS) == f"model.gguf: {expected}"


def test_recommendations_for_sampling_are_read_where_there_are_any() -> None:
    silent = {"temperature": None, "top_k": None, "top_p": None, "min_p": None}
    assert recommended_sampling(described()) == silent
    given = {"general.sampling.temp": 0.7, "general.sampling.top_k": 20}
    assert recommended_sampling(described(given)) == {**silent, "temperature": 0.7, "top_k": 20}
    assert message(recommended_sampling, described({"general.sampling.temp": "hot"})) == (
        "model.gguf: general.sampling.temp = 'hot': expected a number"
    )


def test_damage_anywhere_is_one_error_or_a_model(tmp_path, write_gguf) -> None:
    path = write_gguf(tmp_path / "model.gguf", CONFIG, random_tensors(CONFIG), "F16")
    data = path.read_bytes()
    header = min(tensor.offset for tensor in read_gguf(path).tensors.values())
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in random.integers(0, header, random.integers(1, 3)):
            changed[place] ^= 1 << random.integers(0, 8)
        if random.random() < 0.1:
            del changed[random.integers(0, len(changed)) :]
        path.write_bytes(changed)
        try:
            load_weights(read_gguf(path), OPS)
        except ModelFileError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
    assert 200 < refused < 300
